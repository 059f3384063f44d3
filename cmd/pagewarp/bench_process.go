package main

import (
	"context"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/bench/engine"
	"github.com/pagewarp/pagewarp/bench/process"
	benchreport "github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/transport"
)

// benchProcessFlags are those of pagewarp bench process.
type benchProcessFlags struct {
	benchFlags
	engines            []string
	load, link         string
	root, peers, out   string
	codec              string
	limit, watch, span time.Duration
}

func peersFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "peers", filepath.Join("build", "peers"), "`FOLDER` with the Go peers, made by make peers")
}

func newBenchProcess() *cobra.Command {
	var f benchProcessFlags
	var done *engine.Result
	c := benchmark("process", "The work of a process moved by pagewarp's parts, by CRIU, and by a Go peer", &f.benchFlags,
		func(ctx context.Context, step func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error) {
			o, err := f.options(step)
			if err != nil {
				return nil, nil, nil, err
			}
			r, err := engine.RunProcess(ctx, o)
			if err != nil && (r == nil || len(r.Rows) == 0) {
				return nil, nil, nil, err
			}
			done = r
			return r, nil, func(w io.Writer) error { return finishComparison(w, r, f.out, "process") }, err
		})
	failIfBad(c, &done)
	c.Long = `Start a process that works on its memory at one host of this machine, a network
namespace, and have it go on at another by each engine in alternation, with a new
process every time. What it does is counted by the process itself, the same way
for each engine, and its memory is verified at the end.

CRIU carries the process over, all of it. The others serve memory alone: with them
a second process, started within the time that is measured, goes on with the work
over the first one's memory, which is less. Every engine gets its best settings,
which the report states; one that cannot run here is listed with the reason. CRIU
is that of the folder --qemu-root, or with the name criu-lazy this machine's.
Everything needs root.`
	c.Example = `  pagewarp bench peers --make-root && make peers
  pagewarp bench process --load touch:ws=256
  pagewarp bench process --engine pagewarp,criu-lazy@root --load churn:ws=256 --link 1G --repeat 5`
	fl := c.Flags()
	fl.StringSliceVar(&f.engines, "engine", []string{process.Pagewarp, process.CRIU + process.AtRoot, process.Go}, strings.Join(process.Names(), ", "))
	fl.StringVar(&f.load, "load", "touch:ws=256", "touch, zipf, sweep or churn, with parameters as `KIND:NAME=VALUE,…`")
	fl.StringVar(&f.link, "link", "none", "limit of the link in bit/s, such as 1G or 10G, or none")
	fl.StringVar(&f.codec, "codec", "auto", "pagewarp's codec for precache: auto, none, s2 or zstd")
	fl.DurationVar(&f.limit, "limit", 3*time.Minute, "give a move up after this time")
	fl.DurationVar(&f.watch, "watch", 4*time.Second, "watch the process for this time after it has moved")
	fl.DurationVar(&f.span, "span", time.Minute, "how long an engine that brings pages on demand only is watched")
	fl.StringVar(&f.out, "out", filepath.Join("build", "bench"), "`FOLDER` for the plots process-LOAD.svg and .png, and the logs")
	qemuRootFlag(c, &f.root)
	peersFlag(c, &f.peers)
	f.repeatFlag(c, 3)
	return c
}

// options checks the flags and makes the options of them.
func (f *benchProcessFlags) options(step func(string)) (o engine.ProcessOptions, err error) {
	if err := f.check(); err != nil {
		return o, err
	}
	if o.Load, err = engine.ParseLoad(f.load); err != nil {
		return o, usagef("--load: %w", err)
	}
	if !slices.Contains(process.Kinds(), o.Load.Kind) {
		return o, usagef("--load %s: a process has the loads touch, zipf, sweep and churn; pagewarp bench relocate has the others", f.load)
	}
	if o.Link, err = engine.ParseLink(f.link); err != nil {
		return o, usagef("--link: %w", err)
	}
	if _, err := transport.ParseCodecMode(f.codec); err != nil {
		return o, usagef("--codec: %w", err)
	}
	for i, name := range f.engines {
		if slices.Contains(f.engines[:i], name) {
			return o, usagef("--engine: %s is given twice: --repeat repeats all of them", name)
		}
		e, err := process.New(name, process.Env{Root: f.root, Peers: f.peers})
		if err != nil {
			return o, usagef("--engine: %s%w", engine.Suggest(name, process.Names()), err)
		}
		o.Engines = append(o.Engines, e)
	}
	for _, d := range []struct {
		name string
		is   time.Duration
	}{{"limit", f.limit}, {"watch", f.watch}, {"span", f.span}} {
		if d.is < time.Second || d.is > 4*time.Minute { // the probe has room for ten minutes
			return o, usagef("--%s %s: give a time from 1s to 4m", d.name, d.is)
		}
	}
	if f.span > f.limit {
		return o, usagef("--span %s: it ends after --limit %s", f.span, f.limit)
	}
	if err := needRoot(); err != nil {
		return o, err
	}
	if err := writableFolder("out", f.out); err != nil {
		return o, err
	}
	o.LogDir, o.Repeat, o.Codec, o.MoveLimit, o.After, o.Span, o.Step = filepath.Join(f.out, "process"), f.repeat, f.codec, f.limit, f.watch, f.span, step
	return o, nil
}
