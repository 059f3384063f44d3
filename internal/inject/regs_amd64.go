package inject

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// syscallInsn is the SYSCALL instruction.
var syscallInsn = []byte{0x0f, 0x05}

// userCS is the code segment of 64-bit code.
const userCS = 0x33

// registers are the general registers of a stopped thread. Floating point and
// vector registers are the kernel's to keep: no system call changes them.
type registers struct {
	unix.PtraceRegs
	ok bool
}

func (r *registers) loaded() bool { return r.ok }

func (r *registers) load(tid int) error {
	if err := unix.PtraceGetRegs(tid, &r.PtraceRegs); err != nil {
		return fmt.Errorf("read registers of thread %d: %w", tid, gone(err))
	}
	if r.Cs != userCS {
		return fmt.Errorf("%w: thread %d runs 32-bit code", ErrUnsupported, tid)
	}
	r.ok = true
	return nil
}

func (r *registers) store(tid int) error {
	if err := unix.PtraceSetRegs(tid, &r.PtraceRegs); err != nil {
		return fmt.Errorf("write registers of thread %d: %w", tid, gone(err))
	}
	return nil
}

// call makes r enter system call nr at instruction insn.
func (r *registers) call(insn, nr uint64, args []uint64) {
	var a [6]uint64
	copy(a[:], args)
	r.Rip, r.Rax = insn, nr
	// Not in a system call, so that the kernel does not restart the interrupted
	// one on the way.
	r.Orig_rax = ^uint64(0)
	r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9 = a[0], a[1], a[2], a[3], a[4], a[5]
}

// blocked returns the address of the system call instruction of a thread that
// was interrupted in a system call.
func (r *registers) blocked() (insn uint64, ok bool) {
	return r.Rip - uint64(len(syscallInsn)), int64(r.Orig_rax) >= 0
}

// result is the number and the return value of the call just made.
func (r *registers) result() (nr, ret uint64) { return r.Orig_rax, r.Rax }
