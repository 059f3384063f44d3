package accel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Accelerators, as QEMU's -accel names them, and the request to choose one.
const (
	KVM  = "kvm"
	TCG  = "tcg"
	Auto = "auto"
)

// DefaultLimit is how long a kernel gets to print its first line under KVM;
// where KVM works this takes a fraction of a second.
const DefaultLimit = 6 * time.Second

// Options say what to try. The zero value of a field means its default.
type Options struct {
	// QEMU is the emulator's program; by default qemu-system-x86_64.
	QEMU string
	// Kernel is the bzImage to try. It is required.
	Kernel string
	// CacheDir keeps the answer for the same machine boot, emulator and kernel;
	// by default nothing is kept.
	CacheDir string
	// Limit replaces DefaultLimit.
	Limit time.Duration
	// Device replaces /dev/kvm.
	Device string
}

// Choice is the outcome.
type Choice struct {
	// Accel is KVM or TCG.
	Accel string `json:"accel"`
	// Reason says why, for a person.
	Reason string `json:"reason"`
}

// Choose returns KVM if a kernel gets to its first line under it, else TCG. An
// error means that not even the trial could be made: no emulator, no kernel,
// or ctx has ended.
func Choose(ctx context.Context, o Options) (Choice, error) {
	if o.QEMU == "" {
		o.QEMU = "qemu-system-x86_64"
	}
	if o.Limit == 0 {
		o.Limit = DefaultLimit
	}
	if o.Device == "" {
		o.Device = "/dev/kvm"
	}
	qemu, err := exec.LookPath(o.QEMU)
	if err != nil {
		return Choice{}, fmt.Errorf("find the emulator: %w; apt-get install qemu-system-x86", err)
	}
	o.QEMU = qemu
	if _, err := os.Stat(o.Kernel); err != nil {
		return Choice{}, fmt.Errorf("find a kernel to try: %w; 'make guest' builds one", err)
	}
	f, err := os.OpenFile(o.Device, os.O_RDWR, 0)
	if err != nil {
		return Choice{TCG, err.Error()}, nil // quick enough to ask every time
	}
	f.Close()
	cache := o.cachePath()
	if c, ok := load(cache); ok {
		return c, nil
	}
	c, err := o.try(ctx)
	if err != nil {
		return Choice{}, err
	}
	if cache != "" {
		if err := save(cache, c); err != nil {
			return Choice{}, fmt.Errorf("keep the choice of accelerator: %w", err)
		}
	}
	return c, nil
}

// try boots the kernel under KVM until its first output or the limit.
func (o Options) try(ctx context.Context) (Choice, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, o.QEMU, "-accel", KVM, "-m", "128", "-nodefaults", "-display", "none",
		"-no-reboot", "-serial", "stdio", "-kernel", o.Kernel, "-append", trialCmdline)
	cmd.WaitDelay = 2 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	first := &firstLine{stop: cancel}
	cmd.Stdout = first
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin).Round(time.Millisecond)
	switch {
	case first.line != "":
		return Choice{KVM, fmt.Sprintf("a stock kernel printed its first line under KVM after %s", took)}, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return Choice{TCG, fmt.Sprintf("%s opens, but a stock kernel did not get to its first line under KVM within %s", o.Device, o.Limit)}, nil
	case ctx.Err() != nil:
		return Choice{}, fmt.Errorf("try KVM: %w", ctx.Err())
	}
	return Choice{TCG, fmt.Sprintf("QEMU does not run with KVM: %v: %s", err, strings.TrimSpace(stderr.String()))}, nil
}

// trialCmdline has no earlyprintk: with it the boot stub speaks as well, and on
// a host where the kernel proper hangs it still says "Probing EDD".
const trialCmdline = "console=ttyS0 panic=-1"

// banner is in the first line of every Linux kernel's log.
var banner = []byte("Linux version ")

// firstLine stops the trial when the kernel's first line has come.
type firstLine struct {
	line string
	buf  []byte
	stop func()
}

func (f *firstLine) Write(p []byte) (int, error) {
	if f.line != "" {
		return len(p), nil
	}
	f.buf = append(f.buf, p...)
	if i := bytes.Index(f.buf, banner); i >= 0 {
		f.line = string(f.buf[i:])
		f.stop()
	} else if keep := len(banner); len(f.buf) > 1<<16 {
		f.buf = append(f.buf[:0], f.buf[len(f.buf)-keep:]...)
	}
	return len(p), nil
}

// cachePath names the answer's file by all that the answer depends on.
func (o Options) cachePath() string {
	if o.CacheDir == "" {
		return ""
	}
	h := sha256.New()
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	fmt.Fprintf(h, "%s %s %s %s %s\n", boot, o.Device, o.Limit, trialCmdline, banner)
	for _, path := range []string{o.QEMU, o.Kernel} {
		if st, err := os.Stat(path); err == nil {
			fmt.Fprintf(h, "%s %d %d\n", path, st.Size(), st.ModTime().UnixNano())
		}
	}
	return filepath.Join(o.CacheDir, fmt.Sprintf("accel-%x.json", h.Sum(nil)[:8]))
}

func load(path string) (c Choice, ok bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return c, false
	}
	err = json.Unmarshal(text, &c)
	return c, err == nil && (c.Accel == KVM || c.Accel == TCG)
}

func save(path string, c Choice) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// By a rename, so that a reader never sees half of it.
	tmp, err := os.CreateTemp(filepath.Dir(path), "accel-*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(text)
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
