package kmod

// The structures of driver/pagewarp_uapi.h, field by field; abi_unsafe.go
// asserts their layout, driver/main.c does so for C.

const (
	abiVersion = 1
	nameLen    = 64
	pageBytes  = 4096
	magic      = 0xBD
)

// Bounds of the device.
const (
	MinRing = 16    // entries of a ring
	MaxRing = 65536 // entries of a ring
)

type rawInfo struct {
	abi, pageSize                          uint32
	_, maxBytes                            uint64 // features
	maxObjects, maxRing, entrySize, object uint32
	hugePageSize, _                        uint32
	_                                      [2]uint64
}

type rawCreate struct {
	name                  [nameLen]byte
	bytes                 uint64
	mode, uid, gid, flags uint32
	policy, deadlineMS    uint32
	_, _                  uint32 // id, minor: out
	pageSize, _           uint32
	_                     [3]uint64
}

type rawName struct {
	name [nameLen]byte
	_    [2]uint64
}

type rawShrink struct {
	name  [nameLen]byte
	bytes uint64
	_     uint64
}

type rawFreeze struct {
	name  [nameLen]byte
	flags uint32
	fd    int32
	_     uint64
}

type rawStat struct {
	name                                   [nameLen]byte
	id, state                              uint32
	bytes                                  uint64
	_, deadlineMS                          uint32 // policy
	faults, posted, overflows, redelivered uint64
	wakes, killed, spun                    uint64
	pageSize, _                            uint32
	_                                      [2]uint64
}

type rawAttach struct {
	name        [nameLen]byte
	ringEntries uint32
	_           uint32 // flags
	fd          int32
	_           uint32
	_           [3]uint64
}

type rawLayout struct {
	id, ringEntries          uint32
	pages                    uint64
	producerOff, producerLen uint64
	consumerOff, consumerLen uint64
	residentOff, residentLen uint64
	waitersOff, waitersLen   uint64
	pageSize, _              uint32
	_                        [3]uint64
}

type rawAlias struct {
	fd int32
	_  uint32 // flags
	_  uint64
}

type rawWake struct {
	first, count uint64
	_, _         uint32 // flags; woken: out
	_            uint64
}

type rawFault struct {
	page, timeNS uint64
	tid, flags   uint32
	_            uint32
	seq          uint32
}

type rawProducer struct {
	prod, flags, entries, entrySize uint32
	overflows                       uint64
	_                               [5]uint64
}

type rawConsumer struct {
	cons, needWakeup uint32
	spinUS, pollUS   uint32
	_                [6]uint64
}

// ringPending: faults wait outside the full ring.
const ringPending = 1

// Flags of a freeze: one undoes it, the other opens the memory without it.
const (
	freezeThaw = 1
	freezeOpen = 2
)

// createPlain makes an object with no page missing.
const createPlain = 1

// ioctl numbers encode direction, size, type and number: see the kernel's
// Documentation/userspace-api/ioctl/ioctl-decoding.rst.
const (
	iocWrite = 1 << 30
	iocRead  = 2 << 30

	ioGetInfo   = iocRead | 64<<16 | magic<<8
	ioCreate    = iocRead | iocWrite | 136<<16 | magic<<8 | 0x01
	ioDestroy   = iocWrite | 80<<16 | magic<<8 | 0x02
	ioStat      = iocRead | iocWrite | 168<<16 | magic<<8 | 0x03
	ioList      = iocRead | iocWrite | 168<<16 | magic<<8 | 0x04
	ioAttach    = iocRead | iocWrite | 104<<16 | magic<<8 | 0x05
	ioFreeze    = iocRead | iocWrite | 80<<16 | magic<<8 | 0x06
	ioShrink    = iocWrite | 80<<16 | magic<<8 | 0x07
	ioReset     = iocWrite | 80<<16 | magic<<8 | 0x08
	ioLayout    = iocRead | 112<<16 | magic<<8 | 0x10
	ioAlias     = iocRead | iocWrite | 16<<16 | magic<<8 | 0x11
	ioWake      = iocRead | iocWrite | 32<<16 | magic<<8 | 0x12
	ioRedeliver = magic<<8 | 0x13
	ioRelease   = magic<<8 | 0x14
)
