package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/bench/engine"
	"github.com/pagewarp/pagewarp/bench/process"
	benchreport "github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/transport"
)

// benchRelocateFlags are those of pagewarp bench relocate.
type benchRelocateFlags struct {
	benchFlags
	engines         []string
	load, ram, link string
	root, out       string
	codec           string
	vcpus           int
	limit, watch    time.Duration
}

// errNoneMoved: the table has said why.
var errNoneMoved = errors.New("not one relocation succeeded")

func qemuRootFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "qemu-root", filepath.Join("build", "qemu-root"), "`FOLDER` with a newer QEMU and CRIU, made by pagewarp bench peers --make-root")
}

func newBenchRelocate() *cobra.Command {
	var f benchRelocateFlags
	var done *engine.Result
	c := benchmark("relocate", "The same guest under the same load moved by pagewarp and by its peers", &f.benchFlags,
		func(ctx context.Context, step func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error) {
			o, err := f.options(step)
			if err != nil {
				return nil, nil, nil, err
			}
			r, err := engine.Run(ctx, o)
			if err != nil && (r == nil || len(r.Rows) == 0) {
				return nil, nil, nil, err
			}
			done = r
			return r, nil, func(w io.Writer) error { return finishComparison(w, r, f.out, "relocate") }, err
		})
	failIfBad(c, &done)
	c.Long = `Boot a guest with a load, move it from one host to another on this machine, each
a network namespace, and tell what the guest, its clients and the hosts had to
bear; then the same with a new guest and the next engine, in alternation. Every
engine gets its best settings, which the report states; one that cannot run here
is listed with the reason. pagewarp bench peers lists the engines and makes a
newer QEMU for those named NAME@root. The engine floor is QEMU's own migration
between two that have the same memory already: what any engine costs here. The
plots are written to the folder --out.`
	c.Example = `  pagewarp bench relocate --engine pagewarp,qemu-postcopy-preempt --load touch:ws=512
  pagewarp bench relocate --engine pagewarp@root,qemu-precopy@root,qemu-multifd@root --load churn:ws=256,rate=20000 --link 1G
  pagewarp bench relocate --load specweb-banking:sessions=40,scale=0.02 --repeat 5 --json banking.json`
	fl := c.Flags()
	fl.StringSliceVar(&f.engines, "engine", []string{engine.Pagewarp, "qemu-precopy", "qemu-postcopy-preempt"}, strings.Join(engine.Names(), ", ")+"; each also as NAME@root")
	fl.StringVar(&f.load, "load", "touch:ws=512", "touch, churn, zipf, sweep, idle, web, redis, specweb-banking, specweb-ecommerce, specweb-support, with parameters as `KIND:NAME=VALUE,…`")
	fl.StringVar(&f.ram, "ram", "1G", "the guest's memory, such as 512M or 4G")
	fl.StringVar(&f.link, "link", "none", "limit of the link in bit/s, such as 1G or 10G, or none")
	fl.IntVar(&f.vcpus, "vcpus", 1, "the guest's virtual CPUs")
	fl.StringVar(&f.codec, "codec", "auto", "pagewarp's codec for precache: auto, none, s2 or zstd")
	fl.BoolVar(&f.tls, "tls", false, "run pagewarp over mutual TLS; QEMU's own ways run without in any case")
	fl.DurationVar(&f.limit, "limit", 3*time.Minute, "give a relocation up after this time, as a precopy that never converges")
	fl.DurationVar(&f.watch, "watch", 5*time.Second, "watch the guest for this time after it has moved")
	fl.StringVar(&f.out, "out", filepath.Join("build", "bench"), "`FOLDER` for the plots relocate-LOAD.svg and .png")
	qemuRootFlag(c, &f.root)
	f.repeatFlag(c, 3)
	f.vmFlags(c)
	return c
}

// options checks the flags and makes the options of them.
func (f *benchRelocateFlags) options(step func(string)) (o engine.Options, err error) {
	if err := f.check(); err != nil {
		return o, err
	}
	if o.Load, err = engine.ParseLoad(f.load); err != nil {
		return o, usagef("--load: %w", err)
	}
	if o.RAM, err = engine.ParseRAM(f.ram); err != nil {
		return o, usagef("--ram: %w", err)
	}
	if o.Link, err = engine.ParseLink(f.link); err != nil {
		return o, usagef("--link: %w", err)
	}
	if o.Engines, err = engine.ParseEngines(f.engines, engine.Env{Root: f.root}); err != nil {
		return o, usagef("--engine: %w", err)
	}
	if _, err := transport.ParseCodecMode(f.codec); err != nil {
		return o, usagef("--codec: %w", err)
	}
	if f.vcpus < 1 || f.vcpus > 64 {
		return o, usagef("--vcpus %d: give a number from 1 to 64", f.vcpus)
	}
	if f.limit < time.Second || f.limit > time.Hour {
		return o, usagef("--limit %s: give a time from 1s to 1h", f.limit)
	}
	if f.watch < time.Second || f.watch > time.Hour {
		return o, usagef("--watch %s: give a time from 1s to 1h", f.watch)
	}
	if o.Tools, err = relocationTools(); err != nil {
		return o, err
	}
	if err := errors.Join(writableFolder("out", f.out), writableFolder("logs", f.logs)); err != nil {
		return o, err
	}
	o.Tools.Insecure = !f.tls
	o.LogDir, o.VCPUs, o.Repeat, o.Codec, o.MoveLimit = filepath.Join(f.logs, "relocate"), f.vcpus, f.repeat, f.codec, f.limit
	o.Accel, o.CacheDir, o.After, o.Step = f.accel, f.logs, f.watch, step
	return o, nil
}

// succeeded is the number of relocations that did.
func succeeded(r *engine.Result) (n int) {
	for _, s := range r.Engines {
		n += s.Good
	}
	return n
}

// failIfBad has a comparison fail if nothing succeeded, or pagewarp has damaged what
// it moved, after its report is written, which says why.
func failIfBad(c *cobra.Command, done **engine.Result) {
	measure := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := measure(cmd, args); err != nil {
			return err
		}
		if succeeded(*done) == 0 {
			return errNoneMoved
		}
		return (*done).Damaged()
	}
}

// finishComparison writes the tables, and the plots to the folder out.
func finishComparison(w io.Writer, r *engine.Result, out, name string) error {
	if err := r.Text(w); err != nil {
		return err
	}
	if succeeded(r) == 0 {
		return nil // there may be nothing to draw
	}
	base := filepath.Join(out, name+"-"+r.Load.Kind)
	if err := r.WritePlot(base+".svg", base+".png"); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n  %s.png\n", base)
	return err
}

func newBenchPeers() *cobra.Command {
	var root, mirror, peers string
	var makeRoot bool
	c := &cobra.Command{
		Use: "peers", Short: "List the engines of bench relocate and bench process, and make a newer QEMU and CRIU",
		Long: `List the engines of pagewarp bench relocate and of pagewarp bench process: what
each runs with, or why it cannot run on this machine. --make-root first unpacks the
newest QEMU and CRIU that Debian carries, with all they need (200 MB), into the
folder --qemu-root; nothing on this machine is changed beside.`,
		Args: args(cobra.NoArgs),
	}
	c.Flags().BoolVar(&makeRoot, "make-root", false, "make the folder --qemu-root; needs root, mmdebstrap and a network")
	c.Flags().StringVar(&mirror, "mirror", "", "`URL` of the Debian mirror, by default Debian's own")
	qemuRootFlag(c, &root)
	peersFlag(c, &peers)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := (&app{}).untilInterrupt(cmd.Context())
		defer stop()
		if makeRoot {
			_, err := engine.MakeRoot(ctx, root, mirror, func(s string) { fmt.Fprintln(cmd.ErrOrStderr(), s) })
			if ctx.Err() != nil {
				return &exitError{exitInterrupted, errors.New("interrupted; what was begun was removed")}
			}
			if err != nil {
				return err
			}
		}
		return listPeers(ctx, cmd.OutOrStdout(), root, peers)
	}
	return c
}

func listPeers(ctx context.Context, w io.Writer, root, peers string) error {
	var missing []string
	table := func(header string, rows [][]string) error {
		if len(rows) == 0 {
			return nil
		}
		return errors.Join(benchreport.Table(w, []string{"engine", header, "program"}, rows), writeLine(w))
	}
	var rows, processes [][]string
	for _, name := range engine.AllNames() {
		e, err := engine.New(name, engine.Env{Root: root})
		if err != nil {
			return err
		}
		f, err := e.Available(ctx)
		if err != nil {
			missing = append(missing, fmt.Sprintf("  %s cannot run here: %v\n", name, err))
			continue
		}
		rows = append(rows, []string{name, f.QEMU, f.Binary})
	}
	for _, name := range process.Names() {
		e, err := process.New(name, process.Env{Root: root, Peers: peers})
		if err != nil {
			return err
		}
		version, program, err := e.Available(ctx)
		if err != nil {
			missing = append(missing, fmt.Sprintf("  %s cannot run here: %v\n", name, err))
			continue
		}
		processes = append(processes, []string{name, version, program})
	}
	if err := errors.Join(table("QEMU", rows), table("of a process", processes)); err != nil {
		return err
	}
	_, err := io.WriteString(w, strings.Join(missing, ""))
	return err
}
