package qemu

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
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
	out, err := exec.CommandContext(ctx, path, "-version").Output()
	if err != nil {
		return Program{}, detailed(ErrBinary, "%s -version: %w", path, err)
	}
	if p.Version, err = parseVersion(string(out)); err != nil {
		return Program{}, detailed(ErrBinary, "%s: %w", path, err)
	}
	out, err = exec.CommandContext(ctx, path, "-machine", "help").Output()
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
