package touch

import (
	"errors"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/uffd"
)

func TestMain(m *testing.M) {
	Main()
	goleak.VerifyTestMain(m)
}

func start(t *testing.T) *Proc {
	t.Helper()
	p, err := Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func TestSharedContent(t *testing.T) {
	p := start(t)
	const pages, seed = 32, 7
	fd, err := sysmem.CreateMemfd("touch-test", pages*4096, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	alias, err := sysmem.MapShared(fd, 0, pages*4096, true)
	if err != nil {
		t.Fatal(err)
	}
	defer sysmem.Unmap(alias)
	for i := range uint64(pages) {
		Fill(alias[i*4096:][:4096], i, seed)
	}
	r, err := p.MapShared(fd, pages*4096)
	if err != nil {
		t.Fatal(err)
	}
	if bad, err := r.Verify(0, pages, seed); err != nil || bad != 0 {
		t.Errorf("Verify: %d bad, %v", bad, err)
	}
	alias[4096*3+100]++
	if bad, err := r.Verify(0, pages, seed); err != nil || bad != 1 {
		t.Errorf("Verify after damage: %d bad, %v; want 1", bad, err)
	}
	if err := r.Write(3, seed); err != nil {
		t.Fatal(err)
	}
	for _, write := range []bool{false, true} {
		lat, err := r.Touch([]uint64{1, 5, 5, 31}, write, 3)
		if err != nil || len(lat) != 4 || lat[3] == 0 {
			t.Errorf("Touch: %v, %v", lat, err)
		}
	}
	if n, lat, err := r.TouchRandom(4, 8, true, 2, 5*time.Millisecond, 1, 100); err != nil || n == 0 || len(lat) == 0 {
		t.Errorf("TouchRandom: %d touches, %d times, %v", n, len(lat), err)
	}
	if bad, err := r.Verify(0, pages, seed); err != nil || bad != 0 {
		t.Errorf("Verify after writes that change nothing: %d bad, %v", bad, err)
	}
	if _, err := r.Touch([]uint64{pages}, false, 1); err == nil {
		t.Error("a touch beyond the region was accepted")
	}
	if _, err := r.TouchAll(0, 1, false, MaxThreads+1); err == nil {
		t.Error("too many threads were accepted")
	}
	if b, err := p.Fork(r.PageAddr(9)); err != nil || b != 9 {
		t.Errorf("Fork read %d, %v; want 9", b, err)
	}
	moved, err := r.Remap()
	if err != nil {
		t.Fatal(err)
	}
	if bad, err := moved.Verify(0, pages, seed); err != nil || bad != 0 || moved.Addr == r.Addr {
		t.Errorf("after Remap: %d bad, %v", bad, err)
	}
	if err := moved.Unmap(0, pages); err != nil {
		t.Error(err)
	}
}

func TestKillWhileInFault(t *testing.T) {
	p := start(t)
	fd, err := p.Userfaultfd()
	if err != nil {
		t.Fatal(err)
	}
	u, err := uffd.Open(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.API(0); err != nil {
		t.Fatal(err)
	}
	r, err := p.MapPrivate(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Register(r.Addr, r.Size, uffd.ModeMissing); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() { _, err := r.Touch([]uint64{3}, false, 1); got <- err }()
	rd, err := u.NewReader(uffd.ReaderConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	var ev [4]uffd.Event
	n, err := rd.Wait(ev[:], 10*time.Second)
	if err != nil || n != 1 || ev[0].Addr != r.PageAddr(3) {
		t.Fatalf("events %+v, %v", ev[:n], err)
	}
	p.Kill()
	if err := <-got; !errors.Is(err, ErrDead) {
		t.Errorf("Touch in a killed process: %v, want ErrDead", err)
	}
	if _, err := r.TouchAll(0, 1, false, 1); !errors.Is(err, ErrDead) {
		t.Errorf("Touch after Kill: %v, want ErrDead", err)
	}
	if err := unix.Kill(p.Pid(), 0); err == nil {
		t.Error("process is still there")
	}
}

func TestSharedDescriptorsAreClosed(t *testing.T) {
	start(t).Close() // the runtime's own descriptors come with the first use
	before := descriptors(t)
	p := start(t)
	if fd, err := p.Userfaultfd(); err != nil {
		t.Fatal(err)
	} else {
		unix.Close(fd)
	}
	p.Close()
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}
