package uffd

import "unsafe"

// Compile-time assertions: an array type of negative length does not compile,
// so each pair holds its size to exactly the kernel's.
type (
	_ [sizeAPI - unsafe.Sizeof(rawAPI{})]byte
	_ [unsafe.Sizeof(rawAPI{}) - sizeAPI]byte
	_ [sizeRange - unsafe.Sizeof(rawRange{})]byte
	_ [unsafe.Sizeof(rawRange{}) - sizeRange]byte
	_ [sizeRegister - unsafe.Sizeof(rawRegister{})]byte
	_ [unsafe.Sizeof(rawRegister{}) - sizeRegister]byte
	_ [sizeCopy - unsafe.Sizeof(rawCopy{})]byte
	_ [unsafe.Sizeof(rawCopy{}) - sizeCopy]byte
	_ [sizeFill - unsafe.Sizeof(rawFill{})]byte
	_ [unsafe.Sizeof(rawFill{}) - sizeFill]byte
	_ [sizeProtect - unsafe.Sizeof(rawProtect{})]byte
	_ [unsafe.Sizeof(rawProtect{}) - sizeProtect]byte
	_ [sizeMsg - unsafe.Sizeof(rawMsg{})]byte
	_ [unsafe.Sizeof(rawMsg{}) - sizeMsg]byte

	_ [unsafe.Offsetof(rawRegister{}.ioctls) - 24]byte
	_ [24 - unsafe.Offsetof(rawRegister{}.ioctls)]byte
	_ [unsafe.Offsetof(rawCopy{}.copied) - 32]byte
	_ [32 - unsafe.Offsetof(rawCopy{}.copied)]byte
	_ [unsafe.Offsetof(rawFill{}.done) - 24]byte
	_ [24 - unsafe.Offsetof(rawFill{}.done)]byte
	_ [unsafe.Offsetof(rawMsg{}.arg) - 8]byte
	_ [8 - unsafe.Offsetof(rawMsg{}.arg)]byte
)
