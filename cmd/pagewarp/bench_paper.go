package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/bench/engine"
	"github.com/pagewarp/pagewarp/bench/paper"
	benchreport "github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/cmd/internal/version"
)

// errNothingMeasured: the report has said why.
var errNothingMeasured = errors.New("not one experiment could be measured")

func newBenchPaper() *cobra.Command {
	var f benchFlags
	var o paper.Options
	var made *paper.Report
	c := benchmark("paper", "The experiments of the paper, in one report", &f, func(ctx context.Context, step func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error) {
		if f.repeat < 0 || f.repeat > 1000 {
			return nil, nil, nil, usagef("--repeat %d: give a number from 1 to 1000", f.repeat)
		}
		if err := checkAccel(f.accel); err != nil {
			return nil, nil, nil, err
		}
		for _, name := range o.Only {
			if !paper.Known(name) {
				return nil, nil, nil, usagef("--only %s: %schoose from %s", name, engine.Suggest(name, paper.Names()), strings.Join(paper.Names(), ", "))
			}
		}
		if o.Within < 0 {
			return nil, nil, nil, usagef("--within %v: give a time such as 10m", o.Within)
		}
		var err error
		if o.Tools, err = relocationTools(); err != nil {
			return nil, nil, nil, err
		}
		if err := errors.Join(writableFolder("out", o.Out), writableFolder("logs", f.logs)); err != nil {
			return nil, nil, nil, err
		}
		o.LogDir, o.Repeat, o.Accel, o.CacheDir, o.Step = f.logs, f.repeat, f.accel, f.logs, step
		o.Version = version.Get().Version
		o.Command = "pagewarp bench paper"
		if o.Quick {
			o.Command += " --quick"
		}
		if f.repeat > 0 {
			o.Command += fmt.Sprintf(" --repeat %d", f.repeat)
		}
		if len(o.Only) > 0 {
			o.Command += " --only " + strings.Join(o.Only, ",")
		}
		if o.Within > 0 {
			o.Command += " --within " + o.Within.String()
		}
		made, err = paper.Run(ctx, o)
		if made == nil || len(made.Parts) == 0 {
			return nil, nil, nil, err
		}
		return made, nil, func(w io.Writer) error {
			if err := made.Text(w); err != nil {
				return err
			}
			_, err := fmt.Fprintf(w, "  %s\n", filepath.Join(o.Out, paper.PageFile))
			return err
		}, err
	})
	measure := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		err := measure(cmd, args)
		var exit *exitError
		switch {
		case errors.As(err, &exit) && exit.code == exitInterrupted && made != nil && len(made.Parts) > 0:
			return &exitError{exitInterrupted, fmt.Errorf("interrupted; the finished experiments (%d) are in %s", len(made.Parts), filepath.Join(o.Out, paper.PageFile))}
		case err == nil && !made.Measured():
			return errNothingMeasured
		case err == nil:
			return made.Damaged()
		}
		return err
	}
	c.Long = `Make the four experiments of the paper on this machine, with real guests between
two hosts, each a network namespace, and write one report: HTML with plots,
Markdown and JSON.

  web       a web server under a SPECweb-style load relocates: timeline
  precache  the same with and without precache, two timelines on one axis
  memory    a memory-intensive guest: total time against QEMU's precopy, multifd
            and postcopy
  downtime  against the size of memory: 1, 4, 16 GiB and 64 GiB sparse

The report is written anew after each relocation: an interrupted run keeps what was
finished. A run has 40 minutes, with --quick 10 (--within): an experiment whose
share is over says which relocations are missing. One that fails is a part that
says so. --quick has smaller guests, fewer repeats and shorter limits.

With --keep the experiments that are not made stay in the report as they are, so
that it can be made experiment by experiment.`
	c.Example = `  pagewarp bench paper
  pagewarp bench paper --quick --only web,precache --out /tmp/paper
  pagewarp bench paper --only downtime --keep`
	fl := c.Flags()
	fl.BoolVar(&o.Quick, "quick", false, "fewer repeats, smaller guests, shorter limits")
	fl.StringSliceVar(&o.Only, "only", nil, "the `EXPERIMENTS` to make, by default all: "+strings.Join(paper.Names(), ", "))
	fl.StringVar(&o.Out, "out", filepath.Join("build", "bench", "paper"), "`FOLDER` for the report")
	fl.IntVar(&f.repeat, "repeat", 0, "relocations of each kind; by default 3, or 1 with --quick; of downtime, three times as many")
	fl.BoolVar(&o.Keep, "keep", false, "keep the other experiments of the report in --out")
	fl.DurationVar(&o.Within, "within", 0, "how long the run may take; by default 40m, or 10m with --quick")
	f.vmFlags(c)
	return c
}
