package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// Program is an installed QEMU.
type Program struct {
	Path     string
	Version  Version
	Machines []string // types and aliases it knows
}

// probeWait bounds the two runs of a QEMU that answers and exits.
const probeWait = 15 * time.Second

// Probe asks a QEMU program for its version and machine types, by running it.
func Probe(ctx context.Context, binary string) (Program, error) {
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	path, err := findBinary(binary)
	if err != nil {
		return Program{}, err
	}
	p := Program{Path: path}
	out, err := ask(ctx, path, "-version")
	if err != nil {
		return Program{}, detailed(ErrBinary, "%s -version: %w", path, err)
	}
	if p.Version, err = parseVersion(string(out)); err != nil {
		return Program{}, detailed(ErrBinary, "%s: %w", path, err)
	}
	out, err = ask(ctx, path, "-machine", "help")
	if err != nil {
		return Program{}, detailed(ErrBinary, "%s -machine help: %w", path, err)
	}
	for i, line := range slices.Collect(strings.Lines(string(out))) {
		if f := strings.Fields(line); i > 0 && len(f) > 0 {
			p.Machines = append(p.Machines, f[0])
		}
	}
	return p, nil
}

// ask is what a program writes, which ends with ctx. Should it be a script, what that has
// started may live on and keep its output open: that is not waited for.
func ask(ctx context.Context, path string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second
	return cmd.Output()
}

// Programs remembers what Probe said of programs, each for as long as its file is the
// same. The zero value is ready; it is safe for concurrent use.
type Programs struct {
	mu    sync.Mutex
	known map[string]knownProgram // guarded by mu; by path
}

type knownProgram struct {
	Program
	file os.FileInfo
}

// Check is Probe and CheckDestination. A program is run unless it is known, and run again
// before it is refused: behind a script of the same name there may be another QEMU now.
func (p *Programs) Check(ctx context.Context, binary string, d Description) error {
	if path, err := findBinary(binary); err == nil {
		p.mu.Lock()
		k, ok := p.known[path]
		p.mu.Unlock()
		if now, err := os.Stat(path); ok && err == nil && sameFile(k.file, now) && CheckDestination(d, k.Program) == nil {
			return nil
		}
	}
	program, err := p.Learn(ctx, binary)
	if err != nil {
		return err
	}
	return CheckDestination(d, program)
}

// Learn runs a program, as Probe does, and remembers what it said.
func (p *Programs) Learn(ctx context.Context, binary string) (Program, error) {
	path, err := findBinary(binary)
	if err != nil {
		return Program{}, err
	}
	before, err := os.Stat(path) // of a file that is exchanged meanwhile the older one
	if err != nil {
		return Program{}, detailed(ErrBinary, "%w", err)
	}
	program, err := Probe(ctx, path)
	if err != nil {
		return Program{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = make(map[string]knownProgram)
	}
	p.known[path] = knownProgram{program, before}
	return program, nil
}

func sameFile(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// parseVersion reads "QEMU emulator version 7.2.22 (Debian …)".
func parseVersion(out string) (Version, error) {
	var v Version
	line, _, _ := strings.Cut(out, "\n")
	_, rest, ok := strings.Cut(line, "version ")
	if !ok {
		return v, fmt.Errorf("no version in %.80q", line)
	}
	if n, err := fmt.Sscanf(rest, "%d.%d.%d", &v.Major, &v.Minor, &v.Micro); n < 2 {
		return v, fmt.Errorf("no version in %.80q: %w", line, err)
	}
	if _, pkg, ok := strings.Cut(rest, "("); ok {
		v.Package = strings.TrimSuffix(strings.TrimSpace(pkg), ")")
	}
	return v, nil
}

// CheckDestination says whether this QEMU can take the machine: ErrTooOld when it
// is an older release than the source's (a newer one can load an older one's
// state, never the reverse), ErrMachineType when it lacks the machine type.
func CheckDestination(d Description, p Program) error {
	if p.Version.Before(d.Version) {
		return detailed(ErrTooOld, "%s is %s and the machine runs under %s: install at least %d.%d here, or set binary in the destination's template",
			p.Path, p.Version, d.Version, d.Version.Major, d.Version.Minor)
	}
	if !slices.Contains(p.Machines, d.Machine) {
		return detailed(ErrMachineType, "%s (%s) has no %s: install a QEMU that still has it, or restart the machine with a type that both know",
			p.Path, p.Version, d.Machine)
	}
	return nil
}
