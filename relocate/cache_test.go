package relocate

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// otherFileSystem mounts a tmpfs of so many MiB for a cache: nothing can be moved there.
func otherFileSystem(t *testing.T, dir, size string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Fatalf("mount a small tmpfs (this test needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

// keepIn has the cache take the memory of a machine.
func keepIn(ctx context.Context, c *pageCache, vm string, regions []transport.Region, memory []memoryRecord) ([]string, error) {
	k, gone, err := c.hold(ctx, vm, regions, memory)
	if err == nil {
		err = k.finish()
	}
	return gone, err
}

// TestCacheCopyHoldsNobodyUp: while memory of a machine that has left is copied to
// the cache's disk, which takes as long as it takes, other machines come and go, and
// so does the machine itself, with a new RAM file of the old name.
func TestCacheCopyHoldsNobodyUp(t *testing.T) {
	root := vmtest.Dir(t)
	dir := filepath.Join(root, "cache")
	otherFileSystem(t, dir, "16m")
	c, err := openCache(CacheConfig{Dir: dir, Size: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	regions := []transport.Region{{Name: "ram", Pages: 256, PageSize: 4096}}
	ram := func(name string) []memoryRecord {
		t.Helper()
		path := filepath.Join(root, name+".mem")
		if err := os.WriteFile(path, noise(1, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		return []memoryRecord{{Path: path}}
	}
	if _, err := keepIn(t.Context(), c, "other", regions, ram("other")); err != nil {
		t.Fatal(err)
	}
	begun, goOn := make(chan struct{}), make(chan struct{})
	c.copy = func(ctx context.Context, from *os.File, to string) error {
		close(begun)
		<-goOn
		return copySparse(ctx, from, to)
	}
	kept := make(chan error, 1)
	memory := ram("web1")
	go func() {
		_, err := keepIn(t.Context(), c, "web1", regions, memory)
		kept <- err
	}()
	<-begun
	within := func(what string, f func() error) {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- f() }()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s waits for the copy", what)
		}
	}
	within("the use of another entry", func() error {
		e, err := c.find("other")
		if err != nil {
			return err
		}
		return c.used(e)
	})
	within("a machine that needs memory", func() error { _, err := c.giveWay(1, "web2"); return err })
	if exists(memory[0].Path) {
		t.Error("the RAM file still has its name")
	}
	ram("web1") // it is back
	close(goOn)
	if err := <-kept; err != nil {
		t.Error(err)
	}
	if !exists(memory[0].Path) {
		t.Error("the RAM file of the machine that is back was removed with the old one")
	}
	if es, err := c.list(); err != nil || len(es) != 1 || es[0].VM != "web1" || es[0].Bytes != 1<<20 {
		t.Errorf("the cache has %+v, %v", es, err)
	}

	// One that is dropped in the middle of its copy leaves nothing.
	begun, goOn = make(chan struct{}), make(chan struct{})
	memory = ram("web3")
	go func() {
		_, err := keepIn(t.Context(), c, "web3", regions, memory)
		kept <- err
	}()
	<-begun
	within("a drop", func() error { return c.drop("web3") })
	if err := c.drop("web3"); !errors.Is(err, ErrNotCached) {
		t.Errorf("dropped twice: %v", err)
	}
	close(goOn)
	if err := <-kept; !errors.Is(err, errDropped) {
		t.Errorf("the copy of what was dropped: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".new-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in the cache: %q, %v", left, err)
	}
}
