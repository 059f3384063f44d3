package kvmtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
)

const (
	envMark = "PAGEWARP_KVM_PROCESS"
	page    = 4096
	// MaxSize bounds the region, which lies in 32-bit space above 16 MiB.
	MaxSize = 2 << 30
)

// VM is a process with one vCPU and a region of guest memory.
type VM struct {
	// Pid is the process. Immutable, as the rest.
	Pid int
	// Memfd is the file of the region; the VM's, closed by Kill.
	Memfd int
	// UFFD is a userfaultfd of the process, without a handshake and with nothing
	// registered yet; the caller's, to be closed.
	UFFD int
	// Addr is the address of the region in the process, and Size its length, in
	// bytes.
	Addr uint64
	Size uint64

	ctx  context.Context
	cmd  *exec.Cmd
	conn *net.UnixConn
	mu   sync.Mutex // one Run at a time
	kill sync.Once
}

// packet is a command or an answer between the two processes.
type packet struct {
	Err   string
	Addr  uint64
	First uint64
	Pages uint64
	Write bool
	Sum   uint32
}

// Start makes a VM with a region of size bytes, a multiple of 4096, all holes.
// The VM ends with ctx or Kill; Kill must be called to free what it holds.
func Start(ctx context.Context, size int64) (*VM, error) {
	if size <= 0 || size > MaxSize || size%page != 0 {
		return nil, fmt.Errorf("start KVM process: a region of %d bytes, want a multiple of %d up to %d", size, page, MaxSize)
	}
	memfd, err := sysmem.CreateMemfd("kvmtest", size, 0)
	if err != nil {
		return nil, err
	}
	vm, err := start(ctx, memfd, uint64(size))
	if err != nil {
		unix.Close(memfd)
		return nil, fmt.Errorf("start KVM process: %w", err)
	}
	return vm, nil
}

func start(ctx context.Context, memfd int, size uint64) (*VM, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "kvm-socket")
	defer theirs.Close()
	conn, err := touch.PacketConn(pair[0])
	if err != nil {
		return nil, err
	}
	dup, err := unix.FcntlInt(uintptr(memfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		conn.Close()
		return nil, err
	}
	mem := os.NewFile(uintptr(dup), "kvm-memory")
	defer mem.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(touch.FaultingEnv(), envMark+"="+strconv.FormatUint(size, 10))
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs, mem}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, err
	}
	vm := &VM{Pid: cmd.Process.Pid, Memfd: memfd, Size: size, UFFD: -1, ctx: ctx, cmd: cmd, conn: conn}
	var hello packet
	vm.UFFD, err = touch.ReceivePacket(conn, &hello)
	if err == nil && hello.Err != "" {
		err = errors.New(hello.Err)
	}
	if err == nil && vm.UFFD < 0 {
		err = errors.New("no userfaultfd came (is kvmtest.Main called first in TestMain?)")
	}
	if err != nil {
		if vm.UFFD >= 0 {
			unix.Close(vm.UFFD)
		}
		vm.Memfd = -1 // stays Start's
		vm.Kill()
		return nil, err
	}
	vm.Addr = hello.Addr
	return vm, nil
}

// Run has the guest go over pages [first, first+pages) of the region, and
// returns the sum of their first dwords (mod 2^32) as the guest has reported it.
// With write the guest stores into the second dword of page first+i the number
// pages-i. It blocks until all faults are served or the VM has ended; one Run
// at a time.
func (vm *VM) Run(first, pages uint64, write bool) (sum uint32, err error) {
	if pages == 0 || first+pages > vm.Size/page {
		return 0, fmt.Errorf("run over pages %d+%d of a region of %d", first, pages, vm.Size/page)
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if err := touch.SendPacket(vm.conn, packet{First: first, Pages: pages, Write: write}, -1); err != nil {
		return 0, fmt.Errorf("run KVM process %d: %w", vm.Pid, err)
	}
	var ans packet
	if _, err := touch.ReceivePacket(vm.conn, &ans); err != nil {
		return 0, fmt.Errorf("run KVM process %d: %w", vm.Pid, errors.Join(touch.ErrDead, err, context.Cause(vm.ctx)))
	}
	if ans.Err != "" {
		return 0, fmt.Errorf("run KVM process %d: %s", vm.Pid, ans.Err)
	}
	return ans.Sum, nil
}

// Kill ends the VM by SIGKILL, in whatever fault it is, waits for its end and
// frees what it held. More than one call does no harm.
func (vm *VM) Kill() {
	vm.kill.Do(func() {
		// It fails only if the process has ended, which is what is wanted.
		_ = vm.cmd.Process.Kill()
		_ = vm.cmd.Wait()
		vm.conn.Close()
		if vm.Memfd >= 0 {
			unix.Close(vm.Memfd)
		}
	})
}
