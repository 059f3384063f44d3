package sysmem

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// PageSize is the base page size of this machine, in bytes.
var PageSize = os.Getpagesize()

// CreateMemfd makes an anonymous shared file of size bytes. pageSize is that of
// the file: 0 or PageSize for ordinary pages, else a huge page size in bytes, of
// which the kernel must have some in reserve. The caller closes the descriptor.
func CreateMemfd(name string, size int64, pageSize int) (int, error) {
	flags := unix.MFD_CLOEXEC
	if pageSize != 0 && pageSize != PageSize {
		shift := 0
		for 1<<shift < pageSize {
			shift++
		}
		if 1<<shift != pageSize {
			return -1, fmt.Errorf("create memfd %q: page size %d is not a power of two", name, pageSize)
		}
		flags |= unix.MFD_HUGETLB | shift<<unix.MFD_HUGE_SHIFT
	}
	fd, err := unix.MemfdCreate(name, flags)
	if err != nil {
		return -1, fmt.Errorf("create memfd %q with pages of %d bytes: %w", name, pageSize, err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("size memfd %q to %d bytes: %w", name, size, err)
	}
	return fd, nil
}

// CreateFile makes a new sparse file of size bytes with mode 0600; a file that
// exists already is an error. The caller closes the descriptor.
func CreateFile(path string, size int64) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, fmt.Errorf("create %s: %w", path, err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		unix.Close(fd)
		_ = os.Remove(path)
		return -1, fmt.Errorf("size %s to %d bytes: %w", path, size, err)
	}
	return fd, nil
}

// MapShared maps size bytes of fd from offset, shared, for reading and, if
// write, for writing. The offset must be a multiple of the file's page size. The
// slice is good until Unmap; an access beyond the end of the file is a SIGBUS,
// so that whoever maps a file that others may shrink must check or seal it.
func MapShared(fd int, offset, size int64, write bool) ([]byte, error) {
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	b, err := unix.Mmap(fd, offset, int(size), prot, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes at %#x of descriptor %d: %w%s", size, offset, fd, err, adviseMap(err))
	}
	return b, nil
}

// MapAnonymous maps size bytes of zeroes that never move: what the kernel, a NIC
// or another process writes into. The slice is good until Unmap.
func MapAnonymous(size int64) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of anonymous memory: %w%s", size, err, adviseMap(err))
	}
	return b, nil
}

func adviseMap(err error) string {
	if err == unix.ENOMEM {
		return " (check the limits RLIMIT_AS, vm.max_map_count and vm.overcommit_memory=2)"
	}
	return ""
}

// Unmap removes a mapping made here, given the very slice; nil is nothing to do.
func Unmap(b []byte) error {
	if b == nil {
		return nil
	}
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("unmap %d bytes: %w", len(b), err)
	}
	return nil
}

// Advise tells the kernel how b, page-aligned within a mapping, will be used;
// advice is one of unix.MADV_*. MADV_DONTNEED and MADV_REMOVE drop contents.
func Advise(b []byte, advice int) error {
	if err := unix.Madvise(b, advice); err != nil {
		return fmt.Errorf("advise %d for %d bytes: %w", advice, len(b), err)
	}
	return nil
}

// Allocate puts storage behind [offset, offset+length) of fd, zeroed where there was none.
// A signal, of which Go's scheduler sends some, has the kernel give up in between on tmpfs
// and hugetlbfs; that is tried again.
func Allocate(fd int, offset, length int64) error {
	var err error = unix.EINTR
	for errors.Is(err, unix.EINTR) {
		err = unix.Fallocate(fd, 0, offset, length)
	}
	if err != nil {
		return fmt.Errorf("allocate %#x+%#x of descriptor %d: %w", offset, length, fd, err)
	}
	return nil
}

// PunchHole frees the storage of [offset, offset+length) of fd, which reads as
// zero from then on; the file's size stays.
func PunchHole(fd int, offset, length int64) error {
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length); err != nil {
		return fmt.Errorf("punch hole %#x+%#x into descriptor %d: %w", offset, length, fd, err)
	}
	return nil
}

// FileID names a file by its device and inode numbers.
type FileID struct {
	Dev, Ino uint64
}

// IDOf returns the identity of the open file fd.
func IDOf(fd int) (FileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return FileID{}, fmt.Errorf("stat descriptor %d: %w", fd, err)
	}
	return FileID{Dev: uint64(st.Dev), Ino: st.Ino}, nil
}

// OpenOf opens descriptor fd of process pid anew: the same file with a position
// and an access mode of its own (flags as of open(2)). It is how a memfd is had
// that has no name.
func OpenOf(pid, fd, flags int) (int, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/fd/" + strconv.Itoa(fd)
	n, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	return n, nil
}
