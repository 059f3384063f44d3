package relocate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/pageserver"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// placeRun is the number of pages that are read and hashed at a time.
const placeRun = 64

// candidate is a file that may hold what a region of the image does.
type candidate struct {
	path string
	file *os.File
	move bool // give its memory back as it is read
}

// warmUp puts what this host has of the machine under the absent pages of its
// new memory, and tells the source. It is a help, not a condition: whatever fails
// is said, and the machine comes without it.
func (in *incoming) warmUp(ctx context.Context, ctl *control, o *offer) {
	if ctl.conn.Features()&transport.FeatureWarm == 0 {
		if in.rec.Options.Warm != "" || in.rec.Options.PreTransfer {
			in.unwarmed("nothing that is here of the machine's memory can be used", errors.New("the source does not know how; is it of another version?"))
		}
		return
	}
	files, err := in.candidates()
	if err == nil && len(files) == 0 && !in.rec.Options.PreTransfer {
		return
	}
	defer func() {
		for _, f := range files {
			f.file.Close()
		}
	}()
	if err != nil {
		in.unwarmed("what is here of the machine's memory is ignored", err)
		if !in.rec.Options.PreTransfer {
			return
		}
	}
	if err := in.startWarm(); err != nil {
		in.unwarmed("what is here of the machine's memory, or could be, is ignored", err)
		return
	}
	for region, f := range files {
		err := in.place(ctx, region, f)
		if err != nil {
			in.unwarmed("what is here of the machine's memory is used in part", err, "file", f.path)
		}
	}
	if err := in.offerIndex(ctl); err != nil {
		in.warn("the index of what is here was not sent", "err", err) // the channel's end is seen by who reads
	}
	in.newFirst(o)
	if n := in.warm.Candidates(); n > 0 {
		in.note("warm", fmt.Sprintf("%d pages are here already, if the source has the same", n))
	}
}

// unwarmed warns here, and tells the operator, who is at the source.
func (in *incoming) unwarmed(text string, err error, args ...any) {
	in.warn(text, append(args, "err", err)...)
	in.update(func(s *Status) { s.WarmProblem = text + ": " + err.Error() })
}

// startWarm makes the session one with candidates. Page channels have the feature
// in force only from here on.
func (in *incoming) startWarm() error {
	if in.rec.onDevice() {
		return errors.New("memory on the character device takes no candidates; --fault-source userfaultfd does")
	}
	w, err := faultd.NewWarm(tokenBytes(in.rec.Token), in.rec.Regions)
	if err == nil {
		err = in.memory.engine.SetWarm(w)
	}
	if err != nil {
		return err
	}
	in.mu.Lock()
	in.warm = w
	in.mu.Unlock()
	return nil
}

// isWarm reports whether page channels may carry Same.
func (in *incoming) isWarm() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.warm != nil
}

// candidates opens the files that may hold what the regions do, by region: those
// that the operator named, or those that were kept when the machine left.
func (in *incoming) candidates() (map[uint32]*candidate, error) {
	cache := in.host.cache
	name := in.rec.Options.Warm
	if filepath.IsAbs(name) {
		if err := cache.allowed(name); err != nil {
			return nil, err
		}
		f, err := openCandidate(name)
		if err != nil {
			return nil, err
		}
		return map[uint32]*candidate{0: f}, nil
	}
	vm := in.rec.VM
	if name != "" {
		vm = name
	}
	e, err := cache.find(vm)
	switch {
	case errors.Is(err, ErrNotCached) && name == "":
		return nil, nil
	case err != nil:
		return nil, err
	case e.Problem != "":
		return nil, fmt.Errorf("cached memory of %s: %s; `pagewarp cache drop %s` removes it", vm, e.Problem, vm)
	}
	files := make(map[uint32]*candidate)
	for _, r := range in.rec.Regions {
		for _, old := range e.Regions {
			if old.ID != r.ID || old.PageSize != r.PageSize {
				continue
			}
			f, err := openCandidate(e.file(r.ID))
			if err != nil {
				for _, f := range files {
					f.file.Close()
				}
				return nil, err
			}
			files[r.ID] = f
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("cached memory of %s is of a machine with other memory", vm)
	}
	free, err := sysmem.Available()
	if err == nil && vm == in.rec.VM && free-memoryMargin < 2*e.Bytes {
		in.note("warm", "memory is short: the cached pages are moved, and would be gone after a rollback")
		for _, f := range files {
			f.move = true
		}
	}
	if err := cache.used(e); err != nil {
		in.warn("the cache was not told of its use", "err", err)
	}
	return files, nil
}

func openCandidate(path string) (*candidate, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := &candidate{path: path, file: os.NewFile(uintptr(fd), path)}
	if st, err := f.file.Stat(); err != nil || !st.Mode().IsRegular() {
		f.file.Close()
		return nil, fmt.Errorf("%s is no regular file: %w", path, errors.Join(err, unix.EINVAL))
	}
	return f, nil
}

// place reads a file into the absent pages of a region and hashes it on the way,
// on as many cores as there are. What had no time stays out.
func (in *incoming) place(ctx context.Context, region uint32, f *candidate) error {
	limit := in.host.cfg.deadlines.prepare / 2
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it was not read within %v", limit))
	defer cancel()
	r := in.rec.Regions[region]
	st, err := f.file.Stat()
	if err != nil {
		return err
	}
	pages := min(uint64(st.Size())/uint64(r.PageSize), r.Pages)
	if pages < r.Pages {
		err = fmt.Errorf("it has %d bytes, the region %d", st.Size(), r.Pages*uint64(r.PageSize))
	}
	run := max(1, placeRun*4096/uint64(r.PageSize))
	var (
		wg   sync.WaitGroup
		next atomic.Uint64
		once sync.Once
	)
	for range min(4, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			p := in.newPlacer(r)
			for {
				n := next.Add(run)
				first := n - run
				if first >= pages {
					return
				}
				perr := context.Cause(ctx)
				if perr == nil {
					perr = p.run(f, first, min(run, pages-first))
				}
				if perr != nil {
					once.Do(func() { err = perr })
					next.Store(1 << 62)
					return
				}
			}
		})
	}
	wg.Wait()
	return err
}

// placer puts candidates under the absent pages of one region.
type placer struct {
	in     *incoming
	region transport.Region
	hash   *hashing
	dst    [][]byte
}

func (in *incoming) newPlacer(r transport.Region) *placer {
	return &placer{in: in, region: r, hash: newHashing(in.warm, r.ID)}
}

// run reads count pages from first on out of a file of the same layout.
func (p *placer) run(f *candidate, first, count uint64) error {
	size, e := int64(p.region.PageSize), p.in.memory.engine
	for end := first + count; first < end; {
		start, stop, err := sysmem.NextData(int(f.file.Fd()), int64(first)*size)
		if errors.Is(err, io.EOF) || err == nil && start >= int64(end)*size {
			return nil
		}
		if err != nil {
			return err
		}
		first = uint64(max(start/size, int64(first)))
		n := min(uint64((stop+size-1)/size), end) - first
		r := transport.Range{Region: p.region.ID, First: first, Count: uint32(n)}
		p.dst = append(p.dst[:0], make([][]byte, n)...)
		if err := e.Place(r, p.dst); err != nil {
			return err
		}
		if err := readv(int(f.file.Fd()), p.dst, int64(first)*size); err != nil {
			if derr := e.Displace(r); derr != nil {
				err = errors.Join(err, derr)
			}
			return fmt.Errorf("read pages %d+%d of %s: %w", first, n, f.path, err)
		}
		if err := p.hash.note(e, r, p.dst); err != nil {
			return err
		}
		if f.move {
			if err := sysmem.PunchHole(int(f.file.Fd()), int64(first)*size, int64(n)*size); err != nil {
				f.move = false // it costs memory, nothing else
			}
		}
		first += n
	}
	return nil
}

// readv reads exactly the bytes of dst. Where the memory cannot be had the
// kernel says EFAULT.
func readv(fd int, dst [][]byte, off int64) error {
	for len(dst) > 0 {
		n, err := unix.Preadv(fd, dst, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EFAULT) {
			return fmt.Errorf("%w: %w", transport.ErrNoMemory, err)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		off += int64(n)
		for len(dst) > 0 && n >= len(dst[0]) {
			n -= len(dst[0])
			dst = dst[1:]
		}
		if n > 0 {
			dst[0] = dst[0][n:]
		}
	}
	return nil
}

// offerIndex sends the hashes of all candidates.
func (in *incoming) offerIndex(ctl *control) error {
	const most = transport.MaxIndex / transport.HashSize
	var b []byte
	for _, r := range in.rec.Regions {
		x := in.warm.Index(r.ID)
		for at := uint64(0); ; {
			first, _, ok := x.Next(at, r.Pages, 1)
			if !ok {
				break
			}
			n := min(most, r.Pages-first)
			b = x.Append(b[:0], first, n)
			if err := ctl.sendIndex(transport.Range{Region: r.ID, First: first, Count: uint32(n)}, b); err != nil {
				return err
			}
			in.indexBytes.Add(uint64(len(b) + transport.HeaderSize))
			at = first + n
		}
	}
	return nil
}

// newFirst has the pages that have no candidate, but data at the source, fetched before
// others: what the machine has moved there since is still where it was then.
func (in *incoming) newFirst(o *offer) {
	if len(o.Data) == 0 {
		return
	}
	runs, err := parseRuns(o.Data)
	if err != nil {
		in.warn("the source's list of data is damaged", "err", err)
		return
	}
	var list []pagecache.Run
	for _, run := range runs {
		x := in.warm.Index(run.Region)
		for at, end := run.First, run.First+uint64(run.Count); x != nil && at < end && len(list) < pagecache.MaxListed; {
			first, count, ok := x.Next(at, end, end-at)
			if !ok {
				first, count = end, 0
			}
			if first > at {
				list = append(list, pagecache.Run{Region: run.Region, First: at, Count: uint32(first - at)})
			}
			at = first + count
		}
	}
	if err := in.memory.engine.Begin(list); err != nil {
		in.warn("the source's list of data is ignored", "err", err)
	}
}

// takeIndex has the source take the hashes that the destination sends.
func (o *outgoing) takeIndex(ctl *control) error {
	if ctl.conn.Features()&transport.FeatureWarm == 0 {
		return nil
	}
	w, err := pageserver.NewWarm(tokenBytes(o.rec.Token), o.rec.Regions)
	if err != nil {
		return err
	}
	o.warm = w
	ctl.ch.OnIndex(func(r transport.Range, hashes []byte) error {
		select {
		case <-o.frozen:
			return fmt.Errorf("%w: INDEX after REGIONS", transport.ErrMalformed)
		default:
			return w.Take(r, hashes)
		}
	})
	return nil
}

// keepMemory keeps the RAM files of a machine that has left, if this host does
// so. What could not be kept is freed.
func (o *outgoing) keepMemory() error {
	cache := o.host.cache
	if !cache.enabled() || o.rec.Options.DropWarm || o.rec.onDevice() {
		return freeMemory(o.rec.Memory)
	}
	kept, gone, err := cache.hold(o.host.ctx, o.rec.VM, o.rec.Regions, o.rec.Memory)
	for _, name := range gone {
		o.note("warm", "the cached memory of "+name+" made room")
	}
	if err != nil {
		o.warn("the machine's memory was not kept for its return", "err", err)
		return freeMemory(o.rec.Memory)
	}
	finish := func() {
		if err := kept.finish(); err != nil {
			o.warn("the machine's memory was not kept for its return", "err", err)
			return
		}
		o.note("warm", "the machine's memory is kept for its return")
	}
	if len(kept.copies) == 0 {
		finish()
	} else {
		o.host.wg.Go(finish) // nobody waits for the copy
	}
	return nil
}
