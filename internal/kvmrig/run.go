package kvmrig

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/internal/accel"
)

// Config says what to boot.
type Config struct {
	Dir      string // for the initramfs and the logs; made if need be
	Kernel   string // bzImage
	CacheDir string // keeps the choice of accelerator
	Modules  []string
	Programs []Program
	Files    []File // more of what the programs need
	MemMiB   int    // default 1024
	CPUs     int    // default 2
	// Prealloc has the host give all of the memory before the boot. Else the VM's first
	// touch of each page of its own is a fault of the host's, which a benchmark would take
	// for its subject's.
	Prealloc bool
	// Append goes to the end of the kernel's command line.
	Append string
}

// Test is the outcome of one test or subtest.
type Test struct {
	Name   string // in the manner of go test -v, with slashes
	Passed bool
	Took   time.Duration
}

// Result is what a program did.
type Result struct {
	Name   string
	Code   int // exit code, or -1 where it did not end
	Output string
	Tests  []Test
}

// Outcome is what a boot came to.
type Outcome struct {
	Results []Result
	// Verdict is nil if the VM came to its end with the right token, and every
	// program exited with 0.
	Verdict error
	// Console is the kernel's log; Warnings are its lines that should not be.
	Console  string
	Warnings []string
	// Accel is the accelerator.
	Accel string
	Took  time.Duration
	// Boots is how often the VM was booted: see [Run].
	Boots int
}

// mostBoots bounds them.
const mostBoots = 2

// Run boots the VM, which ends by itself, or with ctx. An error means that there
// was no boot; what went wrong in it is in the outcome.
//
// A kernel that dies under an emulator before it has come to its first program is booted
// once more: nothing of the tests was in it yet. QEMU's TCG was seen to run into the
// breakpoint (int3) that the kernel has in its code for a moment when it patches itself.
func Run(ctx context.Context, c Config) (*Outcome, error) {
	if c.MemMiB == 0 {
		c.MemMiB = 1024
	}
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	choice, err := accel.Choose(ctx, accel.Options{Kernel: c.Kernel, CacheDir: c.CacheDir})
	if err != nil {
		return nil, err
	}
	initrd := filepath.Join(c.Dir, "initramfs.cpio")
	defer os.Remove(initrd) // of 200 MB, and made anew each time
	if err := writeImage(ctx, c.Dir, initrd, c.Modules, c.Programs, c.Files); err != nil {
		return nil, fmt.Errorf("write %s: %w", initrd, err)
	}
	for boots := 1; ; boots++ {
		o, err := boot(ctx, c, choice.Accel, initrd)
		if err != nil || boots == mostBoots || ctx.Err() != nil || choice.Accel != accel.TCG || !diedEarly(o) {
			if o != nil {
				o.Boots = boots
			}
			return o, err
		}
	}
}

// diedEarly reports a kernel that has complained and never came to its first program.
func diedEarly(o *Outcome) bool {
	return len(o.Warnings) > 0 && !strings.Contains(o.Console, "as init process")
}

// boot boots the VM once.
func boot(ctx context.Context, c Config, accelerator, initrd string) (*Outcome, error) {
	token := rand.Text()
	console, tests := filepath.Join(c.Dir, "console.log"), filepath.Join(c.Dir, "tests.log")
	for _, path := range []string{console, tests} {
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", accelerator, "-cpu", "max",
		"-m", strconv.Itoa(c.MemMiB), "-smp", strconv.Itoa(c.CPUs), "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "file:"+console, "-serial", "file:"+tests, "-kernel", c.Kernel, "-initrd", initrd,
		"-append", "console=ttyS0 panic=-1 oops=panic panic_on_warn=1 "+TokenParam+token+" "+c.Append)
	if c.Prealloc {
		cmd.Args = slices.Insert(cmd.Args, 1, "-mem-prealloc")
	}
	if accelerator == accel.TCG {
		// Machine checks and mitigations only cost time under an emulator.
		cmd.Args[len(cmd.Args)-1] += " mitigations=off tsc=reliable"
		// It takes strings byte by byte: without this, the kernel and Go clear and copy
		// pages by the instructions that are the fastest on a real processor, and here
		// the slowest.
		cmd.Args[slices.Index(cmd.Args, "max")] += ",erms=off,fsrm=off"
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = 5 * time.Second
	begin := time.Now()
	runErr := cmd.Run()
	o := &Outcome{Accel: accelerator, Took: time.Since(begin)}
	kernelLog, err := os.ReadFile(console)
	if err != nil {
		return nil, err
	}
	o.Console = string(kernelLog)
	o.Warnings = warnings(o.Console)
	text, err := os.ReadFile(tests)
	if err != nil {
		return nil, err
	}
	o.Results, o.Verdict = parse(string(text), token)
	switch {
	case ctx.Err() != nil:
		o.Verdict = errors.Join(fmt.Errorf("the VM did not end: %w", context.Cause(ctx)), o.Verdict)
	case runErr != nil:
		o.Verdict = errors.Join(fmt.Errorf("QEMU: %w: %s", runErr, strings.TrimSpace(stderr.String())), o.Verdict)
	case len(o.Warnings) > 0:
		o.Verdict = errors.Join(fmt.Errorf("the kernel complained: %s", o.Warnings[0]), o.Verdict)
	}
	return o, nil
}

// complaint matches lines of the kernel's log that no run may have. A module
// that is not the kernel's own taints it, which is no complaint; what kmemleak suspects
// is for the test that asks it to judge.
var complaint = regexp.MustCompile(`WARNING:|BUG:|BUG\b.*at |Oops|general protection|Kernel panic|Call Trace|possible (circular|recursive) locking|` +
	`blocked for more than|rcu.*stall|soft lockup|KASAN|refcount_t|scheduling while atomic|Bad page|UBSAN`)

func warnings(console string) []string {
	var found []string
	for line := range strings.Lines(console) {
		if complaint.MatchString(line) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// outcome matches the lines in which a Go test tells how it ended.
var outcome = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(([0-9.]+)s\)$`)

// parse reads the second serial port.
func parse(text, token string) ([]Result, error) {
	var results []Result
	var verdict string
	mark := Mark + token + " "
	var body strings.Builder
	closeOne := func(code int) {
		if len(results) > 0 {
			results[len(results)-1].Code = code
			results[len(results)-1].Output = body.String()
		}
		body.Reset()
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		rest, ours := strings.CutPrefix(line, mark)
		if !ours {
			body.WriteString(line + "\n")
			if m := outcome.FindStringSubmatch(line); m != nil && len(results) > 0 {
				seconds, _ := strconv.ParseFloat(m[3], 64)
				r := &results[len(results)-1]
				r.Tests = append(r.Tests, Test{Name: m[2], Passed: m[1] == "PASS", Took: time.Duration(seconds * float64(time.Second))})
			}
			continue
		}
		word, arg, _ := strings.Cut(rest, " ")
		switch word {
		case "begin":
			body.Reset()
			results = append(results, Result{Name: arg, Code: -1})
		case "end":
			_, code, _ := strings.Cut(arg, " ")
			n, err := strconv.Atoi(code)
			if err != nil {
				n = -1
			}
			closeOne(n)
		case "verdict":
			verdict = arg
		}
	}
	if len(results) > 0 && results[len(results)-1].Code == -1 && body.Len() > 0 {
		closeOne(-1)
	}
	switch verdict {
	case "ok":
	case "":
		return results, errors.New("the VM ended without a verdict")
	default:
		return results, fmt.Errorf("the VM's verdict: %s", verdict)
	}
	for _, r := range results {
		if r.Code != 0 {
			return results, fmt.Errorf("the verdict is ok, but %s exited with %d", r.Name, r.Code)
		}
	}
	return results, nil
}
