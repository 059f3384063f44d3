package kvmtest

// The part of linux/kvm.h that a vCPU without devices needs. The structures are
// declared once; kvm_unsafe_amd64.go asserts their sizes.
const (
	kvmGetAPIVersion  = 0xae00
	kvmCreateVM       = 0xae01
	kvmGetMmapSize    = 0xae04
	kvmCreateVCPU     = 0xae41
	kvmSetMemory      = 0x4020ae46
	kvmSetTSSAddr     = 0xae47
	kvmSetIdentityMap = 0x4008ae48
	kvmRun            = 0xae80
	kvmSetRegs        = 0x4090ae82
	kvmGetSregs       = 0x8138ae83
	kvmSetSregs       = 0x4138ae84

	exitIO  = 2
	exitHLT = 5

	// Offsets in struct kvm_run.
	runExitReason   = 8
	runHardware     = 32 // hardware_exit_reason, suberror
	runIOPort       = 34
	runIODataOffset = 40
)

type memoryRegion struct {
	slot, flags       uint32
	gpa, size, hvaddr uint64
}

type regs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8to15                                 [8]uint64
	rip, rflags                            uint64
}

type segment struct {
	base                                               uint64
	limit                                              uint32
	selector                                           uint16
	typ, present, dpl, db, s, l, g, avl, unusable, pad uint8
}

type dtable struct {
	base  uint64
	limit uint16
	_     [3]uint16
}

type sregs struct {
	cs, ds, es, fs, gs, ss, tr, ldt segment
	gdt, idt                        dtable
	cr0, cr2, cr3, cr4, cr8         uint64
	efer, apicBase                  uint64
	interrupts                      [4]uint64
}
