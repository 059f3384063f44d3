package demo

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// bootLimit is how long a guest may take to boot under emulation on a busy
// machine.
const bootLimit = 2 * time.Minute

// GuestConfig is the test guest at the address that all relocations here use.
func GuestConfig() guestapi.Config {
	g := guestapi.DefaultConfig()
	g.IP = netip.MustParsePrefix("10.77.0.100/24")
	return g
}

// Boot starts the test guest on a host's tap0 and waits until its web server
// answers. c needs a name and RAM; the kernel and the network are filled in.
func (p *Pair) Boot(ctx context.Context, s *Side, c rig.VMConfig, g guestapi.Config) (*rig.VM, error) {
	vm, err := StartGuest(ctx, s.Host, c, g)
	if err != nil {
		return nil, err
	}
	return vm, p.Await(ctx, vm, g)
}

// Await waits until a guest's web server answers; a guest that does not is
// ended.
func (p *Pair) Await(ctx context.Context, vm *rig.VM, g guestapi.Config) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("the guest did not boot within "+bootLimit.String()))
	defer cancel()
	if err := vm.WaitReady(ctx, p.Client, g); err != nil {
		return errors.Join(err, vm.Kill())
	}
	return nil
}

// StartGuest starts the test guest's QEMU and waits for its monitor only.
func StartGuest(ctx context.Context, h *rig.Host, c rig.VMConfig, g guestapi.Config) (*rig.VM, error) {
	kernel, initrd, err := rig.GuestImage()
	if err != nil {
		return nil, err
	}
	c.Kernel, c.Initrd, c.Tap = kernel, initrd, "tap0"
	c.Append = guestapi.BaseCmdline + " " + g.Cmdline()
	return rig.StartVM(ctx, h, c)
}

// monitor is where a machine's own monitor is, on whatever side it runs.
func (s *Side) monitor(vm string) string { return filepath.Join(s.Dir, vm+".qmp") }

// MemoryFile is where a machine's memory is on this side.
func (s *Side) MemoryFile(vm string) string { return filepath.Join(s.Dir, vm+".mem") }

// Discard ends a machine that has been relocated to this side, and removes its
// memory.
func (s *Side) Discard(ctx context.Context, vm string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	v, err := qemu.Connect(ctx, s.monitor(vm))
	if err != nil {
		return err
	}
	defer v.Close()
	if err := v.Quit(ctx); err != nil {
		return err
	}
	return os.Remove(s.MemoryFile(vm))
}
