package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/bench/demo"
	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate"
)

// Engine is one way to move a running guest from the pair's host A to host B.
type Engine interface {
	// Name is what New was given.
	Name() string
	// Available tells what the engine runs with, or why it cannot run here.
	Available(ctx context.Context) (Facts, error)
	// Arrange fills in what the engine needs of the source's QEMU.
	Arrange(c *rig.VMConfig)
	// Move moves the guest and waits until its memory is at the destination. It
	// calls j.Begin right before its first step, starting the destination's QEMU. On an
	// error the times of what was reached are set, if anything was.
	Move(ctx context.Context, j *Job) (Moved, error)
}

// Facts of an engine on this machine.
type Facts struct {
	// QEMU is its version, or Version that of another program, and Binary where
	// it is.
	QEMU    string `json:"qemu,omitempty"`
	Version string `json:"version,omitempty"`
	Binary  string `json:"binary"`
}

// Job is one relocation to be made.
type Job struct {
	Pair *demo.Pair
	// VM runs on the pair's host A, started with Config.
	VM     *rig.VM
	Config rig.VMConfig
	Guest  guestapi.Config
	// Link is the link's limit in bytes per second; 0 is none.
	Link uint64
	// Codec is pagewarp's for precache; empty is auto.
	Codec string
	// Precache are pagewarp's policies, as of [relocate.Options]; empty is all.
	Precache string
	// Span is how long a relocation on demand is watched from the guest's
	// resumption on; 0: onDemandSpan.
	Span time.Duration
	// TLS says that the pair's daemons run over mutual TLS.
	TLS bool
	// Begin is to be called when the command is given; it returns that time.
	Begin func() time.Time
}

// Moved is what an engine says of its relocation; the times are of the host's
// clock, and zero for what was not reached.
type Moved struct {
	Started, Stopped, Resumed, Completed time.Time
	// Settings says what the engine was set to.
	Settings string
	// Fault is the latency of demand faults; nil if the engine tells nothing.
	Fault *Fault
	// BytesReported is what the engine says that it sent.
	BytesReported uint64
	// Notes are further facts, such as the passes of a precopy.
	Notes []string
	// There is the QEMU at the destination, if the engine has started it.
	There *rig.VM
	// Status is the destination's last word, of pagewarp.
	Status *relocate.Status
}

// Env is what engines are made with.
type Env struct {
	// Root is a folder with a newer Debian, made by MakeRoot; engines named
	// NAME@root run the QEMU in it.
	Root string
}

// AtRoot ends the name of an engine that runs QEMU from the root.
const AtRoot = "@root"

// hostQEMU is the QEMU of this machine.
const hostQEMU = "qemu-system-x86_64"

// RootQEMU is where QEMU is inside a root.
func RootQEMU(root string) string { return filepath.Join(root, "usr", "bin", hostQEMU) }

// Names lists the engines, without those at the root.
func Names() []string {
	names := []string{Pagewarp}
	for _, m := range modes {
		names = append(names, m.name)
	}
	return append(names, OnDemand, PreTransfer)
}

// AllNames lists the engines with this machine's QEMU and with the root's.
func AllNames() []string {
	all := Names()
	for _, n := range Names() {
		all = append(all, n+AtRoot)
	}
	return all
}

// New returns the engine with that name: one of Names, or one with AtRoot. The
// error of a name that there is none of suggests one that there is.
func New(name string, e Env) (Engine, error) {
	base, atRoot := strings.CutSuffix(name, AtRoot)
	binary := hostQEMU
	if atRoot {
		path, err := filepath.Abs(RootQEMU(e.Root))
		if err != nil {
			return nil, err
		}
		binary = path
	}
	if base == Pagewarp || base == OnDemand || base == PreTransfer {
		return &pagewarp{name: name, binary: binary, onDemand: base == OnDemand, early: base == PreTransfer}, nil
	}
	for _, m := range modes {
		if m.name == base {
			return &native{name: name, binary: binary, mode: m}, nil
		}
	}
	return nil, fmt.Errorf("engine %q: %schoose from %s; NAME%s runs the QEMU of --qemu-root",
		name, Suggest(name, AllNames()), strings.Join(Names(), ", "), AtRoot)
}

// ParseEngines makes the engines of a list of names; one given twice is an error.
func ParseEngines(names []string, e Env) ([]Engine, error) {
	if len(names) == 0 {
		return nil, fmt.Errorf("no engine is given: choose from %s", strings.Join(Names(), ", "))
	}
	var es []Engine
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("engine %s is given twice: --repeat repeats all of them", name)
		}
		g, err := New(name, e)
		if err != nil {
			return nil, err
		}
		es = append(es, g)
	}
	return es, nil
}

// probe tells the version of a QEMU and where it is.
func probe(ctx context.Context, binary string) (Facts, error) {
	if strings.Contains(binary, "/") {
		if _, err := os.Stat(binary); err != nil {
			return Facts{}, fmt.Errorf("there is no QEMU at %s: make the root with `pagewarp bench peers --make-root`, or name another with --qemu-root", binary)
		}
	}
	p, err := probeQEMU(ctx, binary)
	if err != nil {
		return Facts{}, err
	}
	return p, nil
}
