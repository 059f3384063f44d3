package uffd

import "strings"

// Feature is a set of UFFD_FEATURE_* bits, negotiated once per descriptor.
type Feature uint64

// Features of the kernel interface; the comment names the first kernel.
const (
	FeaturePagefaultFlagWP  Feature = 1 << 0  // write-protect faults, 5.7
	FeatureEventFork        Feature = 1 << 1  // fork events; needs CAP_SYS_PTRACE, 4.11
	FeatureEventRemap       Feature = 1 << 2  // mremap events, 4.11
	FeatureEventRemove      Feature = 1 << 3  // MADV_DONTNEED and MADV_REMOVE events, 4.11
	FeatureMissingHugetlbfs Feature = 1 << 4  // missing faults on hugetlbfs, 4.11
	FeatureMissingShmem     Feature = 1 << 5  // missing faults on shared memory, 4.11
	FeatureEventUnmap       Feature = 1 << 6  // munmap events, 4.11
	FeatureSigbus           Feature = 1 << 7  // SIGBUS in place of an event, 4.14
	FeatureThreadID         Feature = 1 << 8  // faulting thread in the event, 4.14
	FeatureMinorHugetlbfs   Feature = 1 << 9  // minor faults on hugetlbfs, 5.13
	FeatureMinorShmem       Feature = 1 << 10 // minor faults on shared memory, 5.14
	FeatureExactAddress     Feature = 1 << 11 // fault address not rounded down, 5.18
	FeatureWPHugetlbfsShmem Feature = 1 << 12 // write protection of shared memory, 5.19
	FeatureWPUnpopulated    Feature = 1 << 13 // write protection of absent pages, 6.4
	FeaturePoison           Feature = 1 << 14 // UFFDIO_POISON, 6.6
	FeatureWPAsync          Feature = 1 << 15 // write protection without events, 6.7
	FeatureMove             Feature = 1 << 16 // UFFDIO_MOVE, 6.8
)

// featuresKnown is the number of Feature bits named here.
const featuresKnown = 17

// Numbers of the ioctls, sizes of their structures, and the requests made of
// both by the _IOR and _IOWR rules of asm-generic/ioctl.h.
const (
	ioctlAPI          uint    = 0x3F
	ioctlRegister     uint    = 0x00
	ioctlUnregister   uint    = 0x01
	ioctlWake         uint    = 0x02
	ioctlCopy         uint    = 0x03
	ioctlZeroPage     uint    = 0x04
	ioctlWriteProtect uint    = 0x06
	ioctlContinue     uint    = 0x07
	ioctlPoison       uint    = 0x08
	apiVersion        uint64  = 0xAA
	reqAPI            uintptr = 3<<30 | sizeAPI<<16 | 0xAA<<8 | uintptr(ioctlAPI)
	reqRegister       uintptr = 3<<30 | sizeRegister<<16 | 0xAA<<8 | uintptr(ioctlRegister)
	reqUnregister     uintptr = 2<<30 | sizeRange<<16 | 0xAA<<8 | uintptr(ioctlUnregister)
	reqWake           uintptr = 2<<30 | sizeRange<<16 | 0xAA<<8 | uintptr(ioctlWake)
	reqCopy           uintptr = 3<<30 | sizeCopy<<16 | 0xAA<<8 | uintptr(ioctlCopy)
	reqZeroPage       uintptr = 3<<30 | sizeFill<<16 | 0xAA<<8 | uintptr(ioctlZeroPage)
	reqWriteProtect   uintptr = 3<<30 | sizeProtect<<16 | 0xAA<<8 | uintptr(ioctlWriteProtect)
	reqContinue       uintptr = 3<<30 | sizeFill<<16 | 0xAA<<8 | uintptr(ioctlContinue)
	reqPoison         uintptr = 3<<30 | sizeFill<<16 | 0xAA<<8 | uintptr(ioctlPoison)
	reqNewDevice      uintptr = 0xAA << 8 // nr 0
	sizeAPI                   = 24
	sizeRange                 = 16
	sizeRegister              = 32
	sizeCopy                  = 40
	sizeFill                  = 32
	sizeProtect               = 24
	sizeMsg                   = 32
)

var featureNames = [featuresKnown]string{
	"pagefault-flag-wp", "event-fork", "event-remap", "event-remove",
	"missing-hugetlbfs", "missing-shmem", "event-unmap", "sigbus", "thread-id",
	"minor-hugetlbfs", "minor-shmem", "exact-address", "wp-hugetlbfs-shmem",
	"wp-unpopulated", "poison", "wp-async", "move",
}

// Has reports whether every bit of want is in f.
func (f Feature) Has(want Feature) bool { return f&want == want }

// String lists the features by name, separated by commas; a bit that this
// package does not know appears as "bitN".
func (f Feature) String() string {
	if f == 0 {
		return "none"
	}
	var b strings.Builder
	for i := range 64 {
		if f&(1<<i) == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		if i < featuresKnown {
			b.WriteString(featureNames[i])
		} else {
			b.WriteString("bit")
			b.WriteByte(byte('0' + i/10))
			b.WriteByte(byte('0' + i%10))
		}
	}
	return b.String()
}

// Mode is what [FD.Register] asks to be told about.
type Mode uint64

// Registration modes; shared memory needs both Missing and Minor, since with
// huge folios a page can be in the page cache before it was received.
const (
	ModeMissing Mode = 1 << 0 // a page that does not exist
	ModeWP      Mode = 1 << 1 // a write to a write-protected page
	ModeMinor   Mode = 1 << 2 // a page in the page cache that is not mapped here
)

// Ioctls is the set of range ioctls that a registered range supports, one bit
// per ioctl number.
type Ioctls uint64

// Range ioctls as [FD.Register] reports them.
const (
	CanWake         Ioctls = 1 << ioctlWake
	CanCopy         Ioctls = 1 << ioctlCopy
	CanZeroPage     Ioctls = 1 << ioctlZeroPage
	CanWriteProtect Ioctls = 1 << ioctlWriteProtect
	CanContinue     Ioctls = 1 << ioctlContinue
	CanPoison       Ioctls = 1 << ioctlPoison
)

// Has reports whether every bit of want is in i.
func (i Ioctls) Has(want Ioctls) bool { return i&want == want }

// OpMode modifies a range operation.
type OpMode uint64

// Modes of the range operations; DontWake leaves the waiters asleep until a
// [FD.Wake], WriteProtect maps the page read-only (Copy and Continue only).
const (
	DontWake     OpMode = 1 << 0
	WriteProtect OpMode = 1 << 1
)

// Flags of [Create].
const (
	// CloseOnExec and NonBlock are O_CLOEXEC and O_NONBLOCK.
	CloseOnExec = 0x80000
	NonBlock    = 0x800
	// UserModeOnly refuses faults raised inside the kernel (system calls, KVM);
	// it needs no privilege, and is of no use below a virtual machine under KVM.
	UserModeOnly = 1
)

// The kernel's structures, declared once; abi_unsafe.go asserts the layouts.
type (
	rawAPI      struct{ api, features, ioctls uint64 }
	rawRange    struct{ start, len uint64 }
	rawRegister struct {
		rng          rawRange
		mode, ioctls uint64
	}
	rawCopy struct {
		dst, src, len, mode uint64
		copied              int64
	}
	// rawFill is uffdio_zeropage, uffdio_continue and uffdio_poison.
	rawFill struct {
		rng  rawRange
		mode uint64
		done int64
	}
	rawProtect struct {
		rng  rawRange
		mode uint64
	}
	// rawMsg is uffd_msg; arg is its union, as three words.
	rawMsg struct {
		event uint8
		_     uint8
		_     uint16
		_     uint32
		arg   [3]uint64
	}
)
