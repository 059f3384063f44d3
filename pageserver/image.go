package pageserver

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// Source names the memory of one region: Path if it is not empty, else FD.
type Source struct {
	transport.Region
	// Path is a file on tmpfs or hugetlbfs, or anything that leads to one, such
	// as /proc/PID/fd/N or /proc/PID/map_files/START-END for the memfd of a
	// process.
	Path string
	// FD is an open file, which is opened anew: it stays the caller's.
	FD int
	// Offset of the region's first page in the file, in bytes.
	Offset int64
}

// region is one region of an image. All of it is immutable after Open.
type region struct {
	transport.Region
	shift uint   // log2 of the page size
	mem   []byte // the mapping, Pages << shift bytes
	off   int64  // of the region in the file
	fd    int
	how   method
}

// method says how a region's pages are found and read.
type method uint8

const (
	// byMincore: mincore(2) vouches for pages in memory, SEEK_DATA for the rest.
	byMincore method = iota
	// bySeek: SEEK_DATA for each page, because mincore(2) calls everything
	// present if we neither own the file nor may write it (Linux 5.0 on).
	bySeek
	// byRead: pread(2) into a buffer, for hugetlbfs.
	byRead
)

// Image is the frozen memory of one machine. Its methods are safe for
// concurrent use.
type Image struct {
	regions []transport.Region // immutable after Open
	state   atomic.Uint32      // an ImageState

	mu       sync.RWMutex // held for reading while an answer is made and sent
	byID     map[uint32]*region
	released bool // guarded by mu
}

// ErrReleased says that the image has been let go: a programmer's mistake, or
// a peer that fetches after DRAINED.
var ErrReleased = errors.New("page server: the image has been released")

// ImageState says whether the machine of an image may write to it.
type ImageState uint32

const (
	// Frozen: nobody writes to the image any more. The state after Open.
	Frozen ImageState = iota
	// Live: the machine runs and writes. Each answer is made of a copy, which may
	// be torn but is what its CRC says.
	Live
	// Shut: fetches are refused with NOT_FROZEN.
	Shut
)

// SetState says what holds for fetches that are answered from now on.
func (im *Image) SetState(s ImageState) { im.state.Store(uint32(s)) }

// Open maps the regions. Once the image is Frozen, which it is until SetState says
// otherwise, its files must not be written; the image does not check that. On an
// error nothing stays open.
func Open(sources []Source) (*Image, error) {
	im := &Image{byID: make(map[uint32]*region, len(sources))}
	for i := range sources {
		r, err := openRegion(&sources[i])
		if err != nil {
			im.Release()
			return nil, fmt.Errorf("open region %d (%q): %w", sources[i].ID, sources[i].Name, err)
		}
		if im.byID[r.ID] != nil {
			r.close()
			im.Release()
			return nil, fmt.Errorf("open region %d (%q): the id is taken by region %q", r.ID, r.Name, im.byID[r.ID].Name)
		}
		im.byID[r.ID] = r
		im.regions = append(im.regions, r.Region)
	}
	return im, nil
}

func openRegion(s *Source) (*region, error) {
	r := &region{Region: s.Region, off: s.Offset, fd: -1}
	if s.PageSize < 4096 || s.PageSize&(s.PageSize-1) != 0 {
		return nil, fmt.Errorf("page size %d is not a power of two of at least 4096", s.PageSize)
	}
	for 1<<r.shift < s.PageSize {
		r.shift++
	}
	if s.Pages == 0 || s.Pages > 1<<(62-r.shift) || s.Offset < 0 || s.Offset > 1<<62 {
		return nil, fmt.Errorf("%d pages of %d bytes at offset %d are no region", s.Pages, s.PageSize, s.Offset)
	}
	path := s.Path
	if path == "" {
		path = "/proc/self/fd/" + strconv.Itoa(s.FD)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	r.fd = fd
	if err := r.mapFile(path); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *region) mapFile(path string) error {
	fs, err := sysmem.FSOf(r.fd)
	if err != nil {
		return err
	}
	if int64(r.PageSize) < int64(fs.PageSize) || r.off%int64(fs.PageSize) != 0 {
		return fmt.Errorf("%s has pages of %d bytes: page size %d or offset %#x does not fit", path, fs.PageSize, r.PageSize, r.off)
	}
	var st unix.Stat_t
	if err := unix.Fstat(r.fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	size := int64(r.Pages) << r.shift
	if st.Size-r.off < size {
		return fmt.Errorf("%s has %d bytes, the region needs %d from offset %#x", path, st.Size, size, r.off)
	}
	switch {
	case fs.Kind == sysmem.FSHugetlbfs:
		r.how = byRead
		return nil
	case int(st.Uid) == os.Geteuid() || os.Geteuid() == 0:
		r.how = byMincore
	default:
		r.how = bySeek
	}
	r.mem, err = sysmem.MapShared(r.fd, r.off, size, false)
	return err
}

func (r *region) close() error {
	err := sysmem.Unmap(r.mem)
	r.mem = nil
	if r.fd >= 0 {
		err = errors.Join(err, unix.Close(r.fd))
		r.fd = -1
	}
	return err
}

// Regions describes the image, in the order of Open. The slice is the caller's.
func (im *Image) Regions() []transport.Region {
	return append([]transport.Region(nil), im.regions...)
}

// Bytes returns the length of all regions.
func (im *Image) Bytes() uint64 {
	var n uint64
	for _, r := range im.regions {
		n += r.Pages * uint64(r.PageSize)
	}
	return n
}

// Release unmaps the image and closes its files. It waits for answers under
// way; end the channels first if their peers may stall. Fetches that come later
// are refused with DONE. A second call does nothing.
func (im *Image) Release() error {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.released {
		return nil
	}
	im.released = true
	var err error
	for _, r := range im.byID {
		err = errors.Join(err, r.close())
	}
	return err
}
