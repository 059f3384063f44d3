package relocate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// CacheConfig says what a host keeps of machines that have left, so that they
// return with little to carry (docs/PROTOCOL.md section 12).
type CacheConfig struct {
	// Dir holds it. On the file system of the RAM files keeping costs nothing,
	// elsewhere a copy in the background.
	Dir string
	// Size is the most that it takes, in bytes; 0 keeps nothing.
	Size int64
	// Allow are directories besides Dir whose files a relocation may name as
	// candidates.
	Allow []string
}

// cacheVersion is that of the files in the cache.
const cacheVersion = 1

const cacheMeta = "meta.json"

// ErrNotCached: the cache has nothing of that machine.
var ErrNotCached = errors.New("not in the cache")

// CacheEntry is one machine's memory as it was when the machine left.
type CacheEntry struct {
	Version int                `json:"version"`
	VM      string             `json:"vm"`
	Regions []transport.Region `json:"regions"`
	Kept    time.Time          `json:"kept"` // when it left
	Used    time.Time          `json:"used"` // when it was kept or last a candidate
	// Path, Bytes (really taken) and Problem (why it is no use) are found out
	// when asked for.
	Path    string `json:"path"`
	Bytes   int64  `json:"bytes"`
	Problem string `json:"problem,omitempty"`
}

func (e *CacheEntry) file(region uint32) string {
	return filepath.Join(e.Path, fmt.Sprintf("region-%d.mem", region))
}

// pageCache is the per-host cache. Nothing in it is trusted: what it holds is
// hashed when it is used, and what does not match is not used.
type pageCache struct {
	cfg  CacheConfig
	copy func(ctx context.Context, from *os.File, to string) error // copySparse

	mu      sync.Mutex              // held over changes of the directory, never over a copy
	keeping map[string]*keptMachine // guarded by mu; those whose memory is not all there yet
}

// openCache prepares the directory. It is private: it holds guests' memory.
func openCache(cfg CacheConfig) (*pageCache, error) {
	c := &pageCache{cfg: cfg, copy: copySparse, keeping: make(map[string]*keptMachine)}
	if cfg.Size <= 0 {
		return c, nil
	}
	if !filepath.IsAbs(cfg.Dir) {
		return c, fmt.Errorf("cache directory %q must be an absolute path", cfg.Dir)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return c, fmt.Errorf("create cache directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(cfg.Dir, &st); err != nil {
		return c, fmt.Errorf("cache directory %s: %w", cfg.Dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return c, fmt.Errorf("cache directory %s must be a directory of this user's with mode 0700, since it holds guests' memory; it has uid %d and mode %#o", cfg.Dir, st.Uid, st.Mode&0o7777)
	}
	stale, _ := filepath.Glob(filepath.Join(cfg.Dir, ".new-*")) // the pattern is well formed
	for _, s := range stale {
		os.RemoveAll(s) // of a daemon that was killed; if it stays it is in nobody's way
	}
	return c, nil
}

func (c *pageCache) enabled() bool { return c.cfg.Size > 0 }

// list returns the entries, the one used longest ago first. One that cannot be
// read is among them, with its problem.
func (c *pageCache) list() ([]CacheEntry, error) {
	if !c.enabled() {
		return nil, nil
	}
	dirs, err := os.ReadDir(c.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("list the cache: %w", err)
	}
	var out []CacheEntry
	for _, d := range dirs {
		if strings.HasPrefix(d.Name(), ".") {
			continue
		}
		out = append(out, c.read(d.Name()))
	}
	slices.SortFunc(out, func(a, b CacheEntry) int { return a.Used.Compare(b.Used) })
	return out, nil
}

// read looks at one entry.
func (c *pageCache) read(name string) CacheEntry {
	e := CacheEntry{}
	path := filepath.Join(c.cfg.Dir, name)
	b, err := os.ReadFile(filepath.Join(path, cacheMeta))
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	e.Path, e.Bytes, e.Problem = path, 0, ""
	switch {
	case err != nil:
		e.Problem = "its description cannot be read: " + err.Error()
	case e.Version != cacheVersion:
		e.Problem = fmt.Sprintf("it is of version %d, this daemon reads %d", e.Version, cacheVersion)
	case e.VM != name:
		e.Problem = fmt.Sprintf("it says that it is of %q", e.VM)
	case len(e.Regions) == 0:
		e.Problem = "it describes no memory"
	}
	e.VM = name
	files, _ := filepath.Glob(filepath.Join(path, "*.mem"))
	for _, f := range files {
		var st unix.Stat_t
		if unix.Lstat(f, &st) == nil {
			e.Bytes += st.Blocks * 512
		}
	}
	return e
}

// find returns the entry of a machine; ErrNotCached without one.
func (c *pageCache) find(vm string) (CacheEntry, error) {
	if !c.enabled() || !validName.MatchString(vm) || !exists(filepath.Join(c.cfg.Dir, vm)) {
		return CacheEntry{}, fmt.Errorf("%s: %w", vm, ErrNotCached)
	}
	return c.read(vm), nil
}

// drop removes the entry of a machine, also one that is still being made.
func (c *pageCache) drop(vm string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.keeping[vm]
	if k != nil {
		k.cancel(errDropped)
		delete(c.keeping, vm)
	}
	if _, err := c.find(vm); err != nil {
		if k != nil && errors.Is(err, ErrNotCached) {
			return nil
		}
		return err
	}
	if err := os.RemoveAll(filepath.Join(c.cfg.Dir, vm)); err != nil {
		return fmt.Errorf("remove %s from the cache: %w", vm, err)
	}
	return nil
}

// evict removes entries, the one used longest ago first, until so many bytes
// are freed; vm's own goes last, and only if own says so. It returns their names.
func (c *pageCache) evict(bytes int64, vm string, own bool) (gone []string, err error) {
	entries, err := c.list()
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(entries, func(a, b CacheEntry) int {
		switch {
		case (a.VM == vm) == (b.VM == vm):
			return 0
		case b.VM == vm:
			return -1
		}
		return 1
	})
	for _, e := range entries {
		if bytes <= 0 || e.VM == vm && !own {
			break
		}
		if err := os.RemoveAll(e.Path); err != nil {
			return gone, fmt.Errorf("remove %s from the cache: %w", e.VM, err)
		}
		bytes -= e.Bytes
		gone = append(gone, e.VM)
	}
	return gone, nil
}

// giveWay frees so many bytes for a machine that needs them more: what is kept of
// others first, then what is of itself. It returns whose memory had to go.
func (c *pageCache) giveWay(bytes int64, vm string) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.evict(bytes, vm, true)
}

// room makes room for an entry of so many bytes.
func (c *pageCache) room(vm string, bytes int64) (gone []string, err error) {
	if bytes > c.cfg.Size {
		return nil, fmt.Errorf("it takes %d MiB, the cache may have %d MiB (cache.size)", bytes>>20, c.cfg.Size>>20)
	}
	entries, err := c.list()
	if err != nil {
		return nil, err
	}
	over := bytes - c.cfg.Size
	for _, e := range entries {
		if e.VM != vm {
			over += e.Bytes
		}
	}
	for name, k := range c.keeping {
		if name != vm {
			over += k.bytes
		}
	}
	return c.evict(over, vm, false)
}

// used notes that an entry is of use.
func (c *pageCache) used(e CacheEntry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.Used = time.Now()
	return writeFileAtomic(filepath.Join(e.Path, cacheMeta), &e)
}

// allowed reports whether a file that a peer has named may be read as candidate:
// the hashes of its pages say something about it.
func (c *pageCache) allowed(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for _, dir := range append([]string{c.cfg.Dir}, c.cfg.Allow...) {
		if dir == "" {
			continue
		}
		if root, err := filepath.EvalSymlinks(dir); err == nil && strings.HasPrefix(real, strings.TrimSuffix(root, "/")+"/") {
			return nil
		}
	}
	return fmt.Errorf("%s is neither in the cache nor in a directory of cache.allow", path)
}

// Cache returns what the host has kept, the entry used longest ago first.
func (h *Host) Cache() ([]CacheEntry, error) { return h.cache.list() }

// CacheDrop removes what the host has kept of a machine; [ErrNotCached].
func (h *Host) CacheDrop(vm string) error {
	if err := h.cache.drop(vm); err != nil {
		return err
	}
	h.events.add(Event{VM: vm, Kind: "machine", Text: "its memory was dropped from the cache"})
	return nil
}
