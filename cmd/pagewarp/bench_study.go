package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/bench/engine"
	benchreport "github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/bench/trace/record"
)

func newBenchStudy() *cobra.Command {
	f := benchRelocateFlags{engines: []string{engine.Pagewarp}}
	f.load, f.ram, f.vcpus, f.codec, f.watch = "touch", "1G", 1, "auto", 2*time.Second
	var o record.StudyOptions
	var rtts, links []string
	c := benchmark("study", "Record a trace of every workload, and simulate each under many conditions", &f.benchFlags,
		func(ctx context.Context, step func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error) {
			var err error
			if o.RTTs, o.Links, err = conditions(rtts, links); err != nil {
				return nil, nil, nil, err
			}
			for _, name := range o.Only {
				if known := record.WorkloadNames(); !slices.Contains(known, name) {
					return nil, nil, nil, usagef("--only %s: %schoose from %s", name, engine.Suggest(name, known), strings.Join(known, ", "))
				}
			}
			if o.Engine, err = f.options(step); err != nil {
				return nil, nil, nil, err
			}
			o.Engine.LogDir, o.Dir, o.Env = filepath.Join(f.out, "logs"), f.out, engine.Env{Root: f.root}
			s, err := record.RunStudy(ctx, o)
			if s == nil || len(s.Traces) == 0 {
				return nil, nil, nil, err
			}
			return s, nil, func(w io.Writer) error {
				files, err := s.Write(f.out)
				if err := errors.Join(s.Text(w), err); err != nil {
					return err
				}
				_, err = fmt.Fprintf(w, "\n  %s\n", strings.Join(files, "\n  "))
				return err
			}, err
		})
	c.Long = `Record a trace of each workload with a real guest, as pagewarp bench trace record
does: touches at random, a sweep, a Zipf law, a write-heavy churn, Redis, a web
server under a SPECweb-style load, an idle guest, and two processors. Then simulate
each with a plain sweep, with the default policies, with the hot list, and with
read-around, at every round trip and link given; and say how far the simulation is
from one real relocation with precache. Tables, as Markdown too, and plots go to the
folder --out. A whole study takes some ten minutes and needs root.`
	c.Example = `  pagewarp bench trace study
  pagewarp bench trace study --reuse --rtt 100us,1ms --link 10G,100G
  pagewarp bench trace study --only zipf,specweb --real-link none`
	fl := c.Flags()
	fl.StringSliceVar(&o.Only, "only", nil, "the `WORKLOADS`, by default all: "+strings.Join(record.WorkloadNames(), ", "))
	fl.BoolVar(&o.Reuse, "reuse", false, "take the traces that are in --out, and record only what is missing")
	fl.StringVar(&f.link, "real-link", "1G", "limit of the link of the real relocations in bit/s, or none")
	fl.StringSliceVar(&rtts, "rtt", []string{"100us", "1ms", "10ms", "100ms"}, "round trips that are simulated")
	fl.StringSliceVar(&links, "link", []string{"1G", "10G", "100G"}, "bandwidths that are simulated, in bit/s")
	fl.BoolVar(&f.tls, "tls", false, "run pagewarp over mutual TLS")
	fl.DurationVar(&f.limit, "limit", time.Minute, "give a relocation up after this time")
	fl.StringVar(&f.out, "out", filepath.Join("build", "bench", "trace"), "`FOLDER` for the traces, tables and plots")
	f.repeatFlag(c, 1)
	f.vmFlags(c)
	return c
}
