package kvmtest

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/internal/uffd"
)

const (
	codeGPA   = 0x1000
	regionGPA = 16 << 20
	tssGPA    = 0xfffbd000 // three pages, for Intel's real mode; any free place
	idmapGPA  = 0xfffbc000
	port      = 0x10
)

// readCode adds up the dwords at ESI, ECX pages of them; writeCode stores ECX
// into the dword behind each as well.
var (
	readCode = []byte{
		0x03, 0x06, // add (%esi),%eax
		0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, // add $4096,%esi
		0x49,       // dec %ecx
		0x75, 0xf5, // jnz -11
		0xe7, port, // out %eax,$port
		0xf4, // hlt
	}
	writeCode = []byte{
		0x03, 0x06, // add (%esi),%eax
		0x89, 0x4e, 0x04, // mov %ecx,4(%esi)
		0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, // add $4096,%esi
		0x49,       // dec %ecx
		0x75, 0xf2, // jnz -14
		0xe7, port, // out %eax,$port
		0xf4, // hlt
	}
)

// vcpu is the machine inside the process.
type vcpu struct {
	fd   int
	run  []byte // struct kvm_run, shared with the kernel
	code []byte // the guest's page of code
}

// Main is the KVM process, if this process was started as one, and then never
// returns; else it returns at once.
func Main() {
	mark := os.Getenv(envMark)
	if mark == "" {
		return
	}
	c, err := touch.PacketConn(3)
	if err != nil {
		fmt.Fprintln(os.Stderr, "KVM process:", err)
		os.Exit(2)
	}
	runtime.LockOSThread() // KVM wants a vCPU run by one thread
	var hello packet
	cpu, u, addr, err := setUp(mark)
	fd := -1
	if err != nil {
		hello.Err = err.Error()
	} else {
		hello.Addr, fd = addr, u.Fd()
	}
	if touch.SendPacket(c, hello, fd) != nil || err != nil {
		os.Exit(1)
	}
	u.Close() // the other side has it
	for {
		var p packet
		if _, err := touch.ReceivePacket(c, &p); err != nil {
			os.Exit(0)
		}
		if p.Sum, err = cpu.goOver(p.First, p.Pages, p.Write); err != nil {
			p.Err = err.Error()
		}
		if touch.SendPacket(c, p, -1) != nil {
			os.Exit(0)
		}
	}
}

// setUp maps the memory, descriptor 4, and makes the vCPU.
func setUp(mark string) (*vcpu, *uffd.FD, uint64, error) {
	size, err := strconv.ParseInt(mark, 10, 64)
	if err != nil {
		return nil, nil, 0, err
	}
	region, err := sysmem.MapShared(4, 0, size, true)
	if err != nil {
		return nil, nil, 0, err
	}
	u, err := uffd.Create(uffd.CloseOnExec | uffd.NonBlock)
	if err != nil {
		return nil, nil, 0, err
	}
	cpu, err := newVCPU(region)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("set up KVM: %w", err)
	}
	return cpu, u, addressOf(region), nil
}

func newVCPU(region []byte) (*vcpu, error) {
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/kvm: %w (load kvm_intel or kvm_amd, with nesting inside a VM, and allow access to the device)", err)
	}
	if v, err := ioctl(kvm, kvmGetAPIVersion, 0); err != nil || v != 12 {
		return nil, fmt.Errorf("KVM version %d, %w; want 12", v, err)
	}
	vm, err := ioctl(kvm, kvmCreateVM, 0)
	if err != nil {
		return nil, fmt.Errorf("create VM: %w", err)
	}
	// Only Intel without unrestricted guests needs these; elsewhere they do
	// nothing, so a refusal is of no consequence here.
	_, _ = ioctl(vm, kvmSetTSSAddr, tssGPA)
	_ = setIdentityMap(vm, idmapGPA)
	cpu := &vcpu{}
	if cpu.code, err = sysmem.MapAnonymous(page); err != nil {
		return nil, err
	}
	for _, m := range []memoryRegion{
		{slot: 0, gpa: codeGPA, size: page, hvaddr: addressOf(cpu.code)},
		{slot: 1, gpa: regionGPA, size: uint64(len(region)), hvaddr: addressOf(region)},
	} {
		if err := setMemory(vm, &m); err != nil {
			return nil, fmt.Errorf("set memory slot %d of %d bytes: %w", m.slot, m.size, err)
		}
	}
	if cpu.fd, err = ioctl(vm, kvmCreateVCPU, 0); err != nil {
		return nil, fmt.Errorf("create vCPU: %w", err)
	}
	n, err := ioctl(kvm, kvmGetMmapSize, 0)
	if err != nil {
		return nil, fmt.Errorf("size of struct kvm_run: %w", err)
	}
	if cpu.run, err = unix.Mmap(cpu.fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map struct kvm_run: %w", err)
	}
	var s sregs
	if err := getSregs(cpu.fd, &s); err != nil {
		return nil, fmt.Errorf("read special registers: %w", err)
	}
	flat := segment{limit: 0xffffffff, selector: 8, typ: 11, present: 1, db: 1, s: 1, g: 1}
	s.cs = flat
	flat.selector, flat.typ = 16, 3
	s.ds, s.es, s.fs, s.gs, s.ss = flat, flat, flat, flat, flat
	s.cr0 |= 1 // protected mode
	if err := setSregs(cpu.fd, &s); err != nil {
		return nil, fmt.Errorf("write special registers: %w", err)
	}
	return cpu, nil
}

// goOver runs the guest from the start to its HLT.
func (c *vcpu) goOver(first, pages uint64, write bool) (uint32, error) {
	code := readCode
	if write {
		code = writeCode
	}
	copy(c.code, code)
	r := regs{rip: codeGPA, rflags: 2, rsi: regionGPA + first*page, rcx: pages}
	if err := setRegs(c.fd, &r); err != nil {
		return 0, fmt.Errorf("write registers: %w", err)
	}
	var sum uint32
	reported := false
	for {
		if _, err := ioctl(c.fd, kvmRun, 0); err == unix.EINTR || err == unix.EAGAIN {
			continue
		} else if err != nil {
			return 0, fmt.Errorf("KVM_RUN: %w", err)
		}
		switch reason := binary.LittleEndian.Uint32(c.run[runExitReason:]); reason {
		case exitIO:
			if p := binary.LittleEndian.Uint16(c.run[runIOPort:]); p != port {
				return 0, fmt.Errorf("guest uses port %#x, want %#x", p, port)
			}
			sum = binary.LittleEndian.Uint32(c.run[binary.LittleEndian.Uint64(c.run[runIODataOffset:]):])
			reported = true
		case exitHLT:
			if !reported {
				return 0, fmt.Errorf("guest has halted without a report")
			}
			return sum, nil
		default:
			return 0, fmt.Errorf("guest stopped for reason %d, detail %#x (linux/kvm.h, KVM_EXIT_*)", reason,
				binary.LittleEndian.Uint64(c.run[runHardware:]))
		}
	}
}
