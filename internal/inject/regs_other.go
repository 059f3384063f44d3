//go:build !amd64

package inject

// syscallInsn is empty where injection is not supported; findSyscall says so.
var syscallInsn []byte

type registers struct{}

func (r *registers) loaded() bool                        { return false }
func (r *registers) load(int) error                      { return ErrUnsupported }
func (r *registers) store(int) error                     { return ErrUnsupported }
func (r *registers) call(insn, nr uint64, args []uint64) {}
func (r *registers) blocked() (uint64, bool)             { return 0, false }
func (r *registers) result() (nr, ret uint64)            { return 0, 0 }
