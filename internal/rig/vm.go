package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pagewarp/pagewarp/internal/accel"
	"github.com/pagewarp/pagewarp/internal/guestapi"
)

// VMConfig says how to start a QEMU. Fields without a word on a default must be
// given.
type VMConfig struct {
	// Name is the VM's name, in QEMU and in the names of its files.
	Name string
	// RAM is the size of its memory in bytes, a multiple of 2 MiB.
	RAM uint64
	// VCPUs is by default 1.
	VCPUs int
	// Accel is accel.KVM, accel.TCG, or accel.Auto, the default.
	Accel string
	// CacheDir is where accel.Auto keeps its finding, if anywhere.
	CacheDir string
	// CPU is QEMU's -cpu, by default QEMU's own default.
	CPU string
	// Machine is by default "pc".
	Machine string
	// Kernel, Initrd and Append boot the guest.
	Kernel, Initrd, Append string
	// Tap is an existing tap device of the host; empty is a VM without network.
	Tap string
	// MAC is the address of its network card, by default 52:54:00:77:00:01.
	MAC string
	// VGA adds a standard graphics card, with its 16 MiB of video memory.
	VGA bool
	// QEMU is the program, by default qemu-system-x86_64.
	QEMU string
	// Incoming, such as "defer", starts a QEMU that waits for a migration.
	Incoming string
	// PrivateMemory leaves out the shared memory file, so that the VM cannot be
	// relocated.
	PrivateMemory bool
	// MemoryOf, if not nil, is a VM of this machine whose memory file this one maps,
	// too, in the place of one of its own.
	MemoryOf *VM
	// ExtraArgs come last on the command line.
	ExtraArgs []string
}

// VM is a QEMU process. Its fields are immutable.
type VM struct {
	Name string
	Host *Host
	Pid  int
	// Accel is the accelerator, and AccelReason why auto chose it.
	Accel, AccelReason string
	// Args is the command line, the program's name first.
	Args []string
	// QMPPath is the control socket, MemPath the file that is the guest's
	// memory, ConsolePath what the guest prints, LogPath what QEMU prints.
	QMPPath, MemPath, ConsolePath, LogPath string

	done chan struct{} // closed when the process was reaped
	err  error         // how it ended; valid once done is closed
}

const defaultMAC = "52:54:00:77:00:01"

var vmNamePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$`)

// ChooseAccel says what a machine runs under, which takes seconds where that is
// accel.Auto and not known yet.
func (c *VMConfig) ChooseAccel(ctx context.Context) (accel.Choice, error) {
	if c.Accel != "" && c.Accel != accel.Auto {
		return accel.Choice{Accel: c.Accel}, nil
	}
	return accel.Choose(ctx, accel.Options{QEMU: c.QEMU, Kernel: c.Kernel, CacheDir: c.CacheDir})
}

// StartVM starts a QEMU inside the host, in a session of its own, so that it
// outlives its starter as an operator's does; the rig's Close ends it.
func StartVM(ctx context.Context, h *Host, c VMConfig) (*VM, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	choice, err := c.ChooseAccel(ctx)
	if err != nil {
		return nil, err
	}
	vm := &VM{Name: c.Name, Host: h, Accel: choice.Accel, AccelReason: choice.Reason, done: make(chan struct{})}
	base := filepath.Join(h.Dir, c.Name)
	vm.QMPPath, vm.MemPath, vm.ConsolePath, vm.LogPath = base+".qmp", base+".mem", base+".console", base+".log"
	if c.MemoryOf != nil {
		vm.MemPath = c.MemoryOf.MemPath
	}
	vm.Args = append([]string{c.QEMU}, c.args(vm)...)

	log, err := os.Create(vm.LogPath)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command("nsenter", h.enter(c.QEMU, vm.Args[1:])...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := h.rig.start(vm, cmd); err != nil {
		return nil, fmt.Errorf("start VM %s on host %s: %w", c.Name, h.Name, err)
	}
	if err := vm.awaitQMP(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start VM %s on host %s: %w", c.Name, h.Name, err), vm.Kill())
	}
	return vm, nil
}

// start runs cmd, tracks it, and reaps it.
func (r *Rig) start(vm *VM, cmd *exec.Cmd) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("the rig is closed")
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	vm.Pid = cmd.Process.Pid
	if start, err := startTime(vm.Pid); err == nil {
		r.pids[vm.Pid] = tracked{start, "VM " + vm.Name}
	}
	r.vms.Go(func() {
		vm.err = cmd.Wait()
		close(vm.done)
	})
	return nil
}

func (c *VMConfig) complete() error {
	if !vmNamePattern.MatchString(c.Name) {
		return fmt.Errorf("start VM %q: want a name of letters, digits, dots and dashes", c.Name)
	}
	step := uint64(2 << 20)
	if c.PrivateMemory {
		step = 8 << 10 // what QEMU rounds up to
	}
	if c.RAM == 0 || c.RAM%step != 0 {
		return fmt.Errorf("start VM %s: RAM of %d bytes is not a multiple of %d", c.Name, c.RAM, step)
	}
	for field, byDefault := range map[*string]string{
		&c.Accel: accel.Auto, &c.Machine: "pc", &c.MAC: defaultMAC, &c.QEMU: "qemu-system-x86_64",
	} {
		if *field == "" {
			*field = byDefault
		}
	}
	if c.VCPUs == 0 {
		c.VCPUs = 1
	}
	if c.VCPUs < 0 {
		return fmt.Errorf("start VM %s: %d vCPUs", c.Name, c.VCPUs)
	}
	if _, err := net.ParseMAC(c.MAC); err != nil {
		return fmt.Errorf("start VM %s: %w", c.Name, err)
	}
	return nil
}

// args returns QEMU's arguments.
func (c *VMConfig) args(vm *VM) []string {
	machine := c.Machine
	if !c.PrivateMemory {
		machine += ",memory-backend=mem"
	}
	args := []string{
		"-name", c.Name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", machine, "-accel", vm.Accel,
		"-smp", strconv.Itoa(c.VCPUs), "-m", strconv.FormatUint(c.RAM>>10, 10) + "K",
		"-qmp", "unix:" + vm.QMPPath + ",server=on,wait=off",
		"-chardev", "file,id=console,append=on,path=" + vm.ConsolePath, "-serial", "chardev:console",
	}
	if !c.PrivateMemory {
		args = append(args, "-object", fmt.Sprintf("memory-backend-file,id=mem,size=%d,mem-path=%s,share=on", c.RAM, vm.MemPath))
	}
	if c.CPU != "" {
		args = append(args, "-cpu", c.CPU)
	}
	if c.Kernel != "" {
		args = append(args, "-kernel", c.Kernel, "-append", c.Append)
	}
	if c.Initrd != "" {
		args = append(args, "-initrd", c.Initrd)
	}
	if c.Tap != "" {
		args = append(args,
			"-netdev", "tap,id=net0,ifname="+c.Tap+",script=no,downscript=no",
			"-device", "virtio-net-pci,netdev=net0,romfile=,mac="+c.MAC)
	}
	if c.VGA {
		args = append(args, "-vga", "std")
	}
	if c.Incoming != "" {
		args = append(args, "-incoming", c.Incoming)
	}
	return append(args, c.ExtraArgs...)
}

// pollInterval is for what offers nothing to wait on.
const pollInterval = 20 * time.Millisecond

// awaitQMP waits until QEMU has made its control socket.
func (vm *VM) awaitQMP(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return vm.poll(ctx, "its QMP socket "+vm.QMPPath, func(context.Context) bool {
		_, err := os.Stat(vm.QMPPath)
		return err == nil
	})
}

// WaitReady waits until the guest has said on its console that it is up, and
// its web server answers a request from the client host.
func (vm *VM) WaitReady(ctx context.Context, client *Host, guest guestapi.Config) error {
	err := vm.poll(ctx, "the line "+guestapi.ReadyLine+" in "+vm.ConsolePath, func(context.Context) bool {
		text, err := os.ReadFile(vm.ConsolePath)
		return err == nil && strings.Contains(string(text), guestapi.ReadyLine+" ")
	})
	if err != nil {
		return err
	}
	url := "http://" + netip.AddrPortFrom(guest.IP.Addr(), uint16(guest.Port)).String() + "/stats"
	return vm.poll(ctx, "an answer from "+url, func(ctx context.Context) bool {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := client.Get(ctx, url)
		return err == nil
	})
}

// Get makes one HTTP request from inside the host, on a connection of its own,
// and returns the body (at most 64 MiB) of an answer with status 200. It gives
// up after getLimit at the latest: a VM that is gone closes no connection.
func (h *Host) Get(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, getLimit)
	defer cancel()
	t := &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}
	defer t.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, err
}

const getLimit = 30 * time.Second

// poll asks until ok, and fails when ctx or QEMU ends.
func (vm *VM) poll(ctx context.Context, what string, ok func(context.Context) bool) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for !ok(ctx) {
		select {
		case <-tick.C:
		case <-vm.done:
			return fmt.Errorf("wait for %s: QEMU ended: %v\n%s", what, vm.err, vm.tail())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w\n%s", what, ctx.Err(), vm.tail())
		}
	}
	return nil
}

// tail returns the end of what the guest and QEMU printed.
func (vm *VM) tail() string {
	var b strings.Builder
	for _, path := range []string{vm.ConsolePath, vm.LogPath} {
		if text, err := os.ReadFile(path); err == nil && len(text) > 0 {
			fmt.Fprintf(&b, "--- %s\n%s\n", path, text[max(0, len(text)-2000):])
		}
	}
	return b.String()
}

// LastWords returns the first line in which the guest's kernel tells of its own
// trouble, or else the last that it printed, and the last line that QEMU printed;
// empty if there is none.
func (vm *VM) LastWords() (guest, qemu string) {
	return lastWords(vm.ConsolePath, "BUG: ", "Oops: ", "Kernel panic"), lastWords(vm.LogPath)
}

func lastWords(path string, trouble ...string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	last := ""
	for line := range strings.Lines(strings.ToValidUTF8(string(b), "?")) {
		if line = strings.TrimSpace(line); line != "" {
			last = line
		}
		for _, t := range trouble {
			if strings.Contains(line, t) {
				return line
			}
		}
	}
	return last
}

// Alive reports whether QEMU still runs.
func (vm *VM) Alive() bool {
	select {
	case <-vm.done:
		return false
	default:
		return true
	}
}

// Wait waits for QEMU's end and returns how it ended.
func (vm *VM) Wait(ctx context.Context) error {
	select {
	case <-vm.done:
		return vm.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of VM %s: %w", vm.Name, ctx.Err())
	}
}

// Kill ends QEMU with SIGKILL and waits for its end.
func (vm *VM) Kill() error {
	if !vm.Alive() {
		return nil
	}
	if err := kill(vm.Pid); err != nil {
		return err
	}
	<-vm.done
	return nil
}
