package relocate

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// errDropped ends the copy of memory that nobody wants any more.
var errDropped = errors.New("it was dropped from the cache, or the machine has left again, before all of it was copied")

// keptMachine is the memory of a machine that has left on its way into the cache.
type keptMachine struct {
	cache  *pageCache
	entry  CacheEntry // its Path is a directory of its own until it is whole
	bytes  int64
	copies map[string]*os.File // by where they go: RAM files that could not be moved, unlinked
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// hold takes over the RAM files of a machine that has left, by moving them into the
// cache where that is possible. Where it is not they are opened and unlinked: their
// names are free for the machine's return, and their memory is if this daemon dies.
// Files that it has not taken are the caller's still. It returns the entries that
// had to go; finish does the rest.
func (c *pageCache) hold(ctx context.Context, vm string, regions []transport.Region, memory []memoryRecord) (_ *keptMachine, gone []string, err error) {
	k := &keptMachine{cache: c, copies: make(map[string]*os.File)}
	for _, m := range memory {
		if m.Object != "" {
			return nil, nil, errors.New("memory on the character device is not kept")
		}
		f, err := m.frozen()
		if err != nil {
			return nil, nil, err
		}
		f.Close() // only looked at
		n, err := m.allocated()
		if err != nil {
			return nil, nil, err
		}
		k.bytes += n
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if gone, err = c.room(vm, k.bytes); err != nil {
		return nil, gone, err
	}
	dir, err := os.MkdirTemp(c.cfg.Dir, ".new-"+vm+"-") // of mode 0700
	if err != nil {
		return nil, gone, err
	}
	now := time.Now()
	k.entry = CacheEntry{Version: cacheVersion, VM: vm, Regions: regions, Kept: now, Used: now, Path: dir}
	k.ctx, k.cancel = context.WithCancelCause(ctx)
	for i, m := range memory {
		if err := k.take(m.Path, k.entry.file(regions[i].ID)); err != nil {
			k.discard()
			return nil, gone, err
		}
	}
	if old := c.keeping[vm]; old != nil {
		old.cancel(errDropped)
	}
	c.keeping[vm] = k
	return k, gone, nil
}

// take moves one file, or opens it to be copied.
func (k *keptMachine) take(from, to string) error {
	err := os.Rename(from, to)
	if err == nil {
		return os.Chmod(to, 0o600)
	}
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	k.copies[to] = f
	return os.Remove(from)
}

// finish copies what could not be moved and makes the entry whole. The cache can be
// used meanwhile.
func (k *keptMachine) finish() error {
	defer k.discard()
	defer k.forget()
	for to, f := range k.copies {
		if err := k.cache.copy(k.ctx, f, to); err != nil {
			return err
		}
	}
	if err := writeFileAtomic(filepath.Join(k.entry.Path, cacheMeta), &k.entry); err != nil {
		return err
	}
	c := k.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.ctx.Err() != nil { // under the lock: whoever drops it now finds it whole
		return context.Cause(k.ctx)
	}
	delete(c.keeping, k.entry.VM)
	final := filepath.Join(c.cfg.Dir, k.entry.VM)
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	return os.Rename(k.entry.Path, final)
}

// discard lets go of everything but a whole entry.
func (k *keptMachine) discard() {
	for _, f := range k.copies {
		f.Close() // only read
	}
	os.RemoveAll(k.entry.Path) // if it stays the next start of the daemon removes it
	k.cancel(nil)
}

// forget ends the bookkeeping of a machine whose memory is whole, or never will be.
func (k *keptMachine) forget() {
	k.cache.mu.Lock()
	defer k.cache.mu.Unlock()
	if k.cache.keeping[k.entry.VM] == k {
		delete(k.cache.keeping, k.entry.VM)
	}
}

// copySparse copies the data of a file and leaves its holes.
func copySparse(ctx context.Context, src *os.File, to string) (err error) {
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(st.Size()); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for at := int64(0); ; {
		start, end, err := sysmem.NextData(int(src.Fd()), at)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for at = start; at < end; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			n, err := src.ReadAt(buf[:min(int64(len(buf)), end-at)], at)
			if n == 0 && err != nil {
				return err
			}
			if _, err := dst.WriteAt(buf[:n], at); err != nil {
				return err
			}
			at += int64(n)
		}
	}
}
