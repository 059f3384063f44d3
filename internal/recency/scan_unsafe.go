package recency

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PAGEMAP_SCAN of include/uapi/linux/fs.h (Linux 6.7): _IOWR('f', 16, struct
// pm_scan_arg), its flag and its categories.
const (
	scanArgBytes   = 96
	regionBytes    = 24
	pagemapScan    = 3<<30 | scanArgBytes<<16 | 'f'<<8 | 16
	scanWPMatching = 1 << 0
	isWritten      = 1 << 1
	isPresent      = 1 << 3
)

// scanArg is struct pm_scan_arg, pageRegion struct page_region.
type (
	scanArg struct {
		size, flags, start, end, walkEnd, vec, vecLen, maxPages       uint64
		categoryInverted, categoryMask, categoryAnyofMask, returnMask uint64
	}
	pageRegion struct{ start, end, categories uint64 }
)

// Compile-time assertions of the layouts.
type (
	_ [scanArgBytes - unsafe.Sizeof(scanArg{})]byte
	_ [unsafe.Sizeof(scanArg{}) - scanArgBytes]byte
	_ [regionBytes - unsafe.Sizeof(pageRegion{})]byte
	_ [unsafe.Sizeof(pageRegion{}) - regionBytes]byte
)

// scan finds the entries that are there and not write-protected, and protects
// them: each was touched for the first time, or written, since the last scan.
// Present is asked for along with written, since an entry that is not there
// counts as written for the kernel.
func (w *Watch) scan(a Area, emit func(start, end uint64)) error {
	// SAFETY: buf is a mapping of ours, page-aligned, as long as the slice says.
	out := unsafe.Slice((*pageRegion)(unsafe.Pointer(unsafe.SliceData(w.buf))), len(w.buf)/regionBytes)
	for at := a.Addr; at < a.Addr+a.Len; {
		arg := scanArg{
			size: scanArgBytes, flags: scanWPMatching, start: at, end: a.Addr + a.Len,
			vec: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(w.buf)))), vecLen: uint64(len(out)),
			categoryMask: isWritten | isPresent, returnMask: isWritten | isPresent,
		}
		// SAFETY: arg's layout is asserted above; the kernel writes arg and at most
		// vecLen regions at vec, which is off-heap memory of that length.
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, w.pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		if errno != 0 {
			return fmt.Errorf("PAGEMAP_SCAN of %#x+%#x: %w", a.Addr, a.Len, errno)
		}
		for _, r := range out[:n] {
			emit(r.start, r.end)
		}
		if arg.walkEnd <= at {
			return fmt.Errorf("PAGEMAP_SCAN of %#x+%#x stands still at %#x", a.Addr, a.Len, at)
		}
		at = arg.walkEnd
	}
	return nil
}

// words views bytes of the buffer as 64-bit words.
func words(b []byte) []uint64 {
	// SAFETY: b starts at the buffer's start, which is page-aligned, and the
	// length rounds down.
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8)
}
