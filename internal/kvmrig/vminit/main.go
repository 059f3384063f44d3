// Command vminit is the init of the VMs of package kvmrig: it loads the modules
// and runs the programs of /plan.json, and tells of it on the second serial port.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/pagewarp/pagewarp/internal/kvmrig"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "vminit: this is the init of a test VM and does nothing elsewhere; see internal/kvmrig")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Println("vminit:", err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil { // QEMU ends: -no-reboot
		fmt.Println("vminit: restart:", err)
	}
	select {}
}

// report is the second serial port.
type report struct {
	*os.File
	token string
}

func (r report) say(format string, args ...any) {
	fmt.Fprintf(r, "\n"+kvmrig.Mark+r.token+" "+format+"\n", args...)
}

func run() error {
	if err := mountAll(); err != nil {
		return err
	}
	port, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	r := report{File: port}
	for word := range strings.FieldsSeq(string(cmdline)) {
		if token, ok := strings.CutPrefix(word, kvmrig.TokenParam); ok {
			r.token = token
		}
	}
	if err := perform(r); err != nil {
		r.say("verdict %s", strings.ReplaceAll(err.Error(), "\n", " "))
	} else {
		r.say("verdict ok")
	}
	// What was written leaves the port before the machine goes.
	return unix.IoctlSetInt(int(port.Fd()), unix.TCSBRK, 1)
}

func mountAll() error {
	for _, m := range []struct{ kind, path string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"},
		{"tmpfs", "/dev/shm"},
	} {
		if err := os.MkdirAll(m.path, 0o755); err != nil {
			return err
		}
		err := unix.Mount(m.kind, m.path, m.kind, 0, "")
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.path, err)
		}
	}
	return nil
}

func perform(r report) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	text, err := os.ReadFile("/plan.json")
	if err != nil {
		return err
	}
	var plan kvmrig.Plan
	if err := json.Unmarshal(text, &plan); err != nil {
		return err
	}
	for _, m := range plan.Modules {
		if err := load(m); err != nil {
			return fmt.Errorf("load %s: %w", m, err)
		}
	}
	var failed []string
	for _, p := range plan.Programs {
		if code := runOne(r, p); code != 0 {
			failed = append(failed, fmt.Sprintf("%s exited with %d", p.Name, code))
		}
	}
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, ", "))
	}
	return nil
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

func runOne(r report, p kvmrig.Program) int {
	r.say("begin %s", p.Name)
	cmd := exec.Command(p.Path, p.Args...)
	cmd.Env = append([]string{"PATH=/bin:/usr/bin", "HOME=/tmp", "TMPDIR=/tmp"}, p.Env...)
	cmd.Dir = "/tmp"
	// The port itself, without a pipe: nothing is lost if the kernel panics.
	cmd.Stdout, cmd.Stderr = r.File, r.File
	err := cmd.Run()
	code := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
		if exit.Exited() {
			break
		}
		fmt.Fprintln(r, exit)
		code = 255
	case err != nil:
		fmt.Fprintln(r, err)
		code = 254
	}
	r.say("end %s %d", p.Name, code)
	return code
}
