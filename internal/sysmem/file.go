package sysmem

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// FSKind is the kind of file system that holds a file.
type FSKind uint8

// Kinds of file systems; only the first two can be memory of a VM that is
// faulted in by userfaultfd.
const (
	FSOther FSKind = iota
	FSTmpfs
	FSHugetlbfs
)

// String names the kind.
func (k FSKind) String() string {
	switch k {
	case FSTmpfs:
		return "tmpfs"
	case FSHugetlbfs:
		return "hugetlbfs"
	}
	return "other"
}

// FSInfo says where a file lives.
type FSInfo struct {
	Kind FSKind
	// Magic is the type of statfs(2), for a message about FSOther.
	Magic int64
	// PageSize is the granularity at which the file is mapped, in bytes.
	PageSize int
	// Free is the room left in the file system, in bytes.
	Free int64
}

// FSOf tells the file system of the open file fd. A memfd counts as tmpfs, or
// with huge pages as hugetlbfs.
func FSOf(fd int) (FSInfo, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return FSInfo{}, fmt.Errorf("statfs of descriptor %d: %w", fd, err)
	}
	info := FSInfo{Magic: int64(st.Type), PageSize: PageSize, Free: int64(st.Bavail) * int64(st.Bsize)}
	switch info.Magic {
	case unix.TMPFS_MAGIC:
		info.Kind = FSTmpfs
	case unix.HUGETLBFS_MAGIC:
		info.Kind = FSHugetlbfs
		info.PageSize = int(st.Bsize)
	}
	return info, nil
}

// NextData finds the first stretch of data of fd at or after off: the bytes
// [start, end) that are not a hole. It returns io.EOF where there is none. It
// moves the file position of fd, so that concurrent callers need descriptors of
// their own (OpenOf). On tmpfs only pages that were written count as data; a
// file system that knows no holes calls all of it data.
func NextData(fd int, off int64) (start, end int64, err error) {
	for ; ; off = start {
		start, err = unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return 0, 0, io.EOF
		}
		if err != nil {
			return 0, 0, fmt.Errorf("seek data after %#x in descriptor %d: %w", off, fd, err)
		}
		end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
		if errors.Is(err, unix.ENXIO) {
			// The stretch was cut off behind us.
			return 0, 0, io.EOF
		}
		if err != nil {
			return 0, 0, fmt.Errorf("seek hole after %#x in descriptor %d: %w", start, fd, err)
		}
		if end > start {
			return start, end, nil
		}
		// A hole was punched there between the two: what comes after it is data still.
	}
}

// WriteAt writes all of p to the file fd at off.
func WriteAt(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("write %d bytes at %#x to descriptor %d: %w", len(p), off, fd, err)
		case n == 0:
			return fmt.Errorf("write %d bytes at %#x to descriptor %d: %w", len(p), off, fd, io.ErrShortWrite)
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}
