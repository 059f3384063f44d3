package process

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/bench/guest/workset"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// Engine is one way to have a process go on with its work at another host.
type Engine interface {
	// Name is what New was given.
	Name() string
	// Available tells the version and the path of the engine's program, or why it
	// cannot run here.
	Available(ctx context.Context) (version, program string, err error)
	// Private says that the engine is for private memory, and not for memory in a
	// shared file.
	Private() bool
	// Move has the process go on at j.B and waits until its memory is there, and
	// the source has let go. It calls j.Begin right before its first step. On an
	// error what was reached is set.
	Move(ctx context.Context, j *Job) (Moved, error)
}

// Names of the engines. AtRoot after the name of CRIU's means the program of the
// root that pagewarp bench peers --make-root makes.
const (
	Pagewarp = "pagewarp"
	CRIU     = "criu-lazy"
	Go       = "userfaultfd-go"
	AtRoot   = "@root"
)

// Names lists the engines.
func Names() []string { return []string{Pagewarp, CRIU + AtRoot, CRIU, Go} }

// Env is what engines are made with.
type Env struct {
	// Root is a folder with a newer Debian.
	Root string
	// Peers is the folder with the programs of bench/peers.
	Peers string
}

// New returns the engine with one of the Names.
func New(name string, e Env) (Engine, error) {
	path := func(elements ...string) (string, error) { return filepath.Abs(filepath.Join(elements...)) }
	switch name {
	case Pagewarp:
		return &own{name}, nil
	case CRIU:
		return &criu{name, "criu"}, nil
	case CRIU + AtRoot:
		p, err := path(e.Root, "usr", "sbin", "criu")
		return &criu{name, p}, err
	case Go:
		p, err := path(e.Peers, Go)
		return &goPeer{name, p}, err
	}
	return nil, fmt.Errorf("engine %q: choose from %s", name, strings.Join(Names(), ", "))
}

// pageBytes is the size of a page, in bytes.
const pageBytes = workset.PageBytes

// Job is one process to be moved.
type Job struct {
	A, B *rig.Host
	// Worker works at A, watched by Probe.
	Worker *Worker
	Probe  *Probe
	// Dir is a folder for logs.
	Dir string
	// Codec is pagewarp's for precache; empty is auto.
	Codec string
	// Span is how long an engine that brings pages on demand only is given, from
	// the process's resumption on, until it has brought all.
	Span time.Duration
	// Begin is to be called before the first step; it returns that time.
	Begin func() time.Time
}

// Moved is what an engine says of its move; times are zero for what was not
// reached.
type Moved struct {
	Started time.Time
	// Frozen is a time at which the process stood still to be moved: when exactly
	// it stopped and went on, the probe tells.
	Frozen time.Time
	// Completed is when all memory was there and the source let go; zero, too,
	// for an engine on demand that had not brought all in the span.
	Completed time.Time
	// Settings says what the engine was set to, Notes are further facts.
	Settings string
	Notes    []string
	// BytesReported is what the engine says that it sent.
	BytesReported uint64
}
