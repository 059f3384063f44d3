package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/bench/engine"
	benchreport "github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/bench/trace/record"
)

func newBenchRecord() *cobra.Command {
	f := benchRelocateFlags{engines: []string{engine.Pagewarp}}
	c := benchmark("record", "Record the faults of a guest that moves, and check the simulation on it", &f.benchFlags,
		func(ctx context.Context, step func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error) {
			o, err := f.options(step)
			if err != nil {
				return nil, nil, nil, err
			}
			r, err := record.Run(ctx, record.Options{Engine: o, Env: engine.Env{Root: f.root}})
			if err != nil {
				return nil, nil, nil, err
			}
			r.File = filepath.Join(f.out, o.Load.Kind+".json.gz")
			if err := r.Trace.Write(r.File); err != nil {
				return nil, nil, nil, err
			}
			return r, nil, func(w io.Writer) error {
				if err := r.Text(w); err != nil {
					return err
				}
				_, err := fmt.Fprintf(w, "\n  %s\n", r.File)
				return err
			}, nil
		})
	c.Long = `Boot a guest with a load, move it on demand only and log the faults for 10 s, which
gives the trace LOAD.json.gz in the folder --out; then move guests of the same kind
with precache, simulate that by the trace, and say how far the simulation is off.
It needs root, as pagewarp bench relocate does.`
	c.Example = `  pagewarp bench trace record --load redis
  pagewarp bench trace record --load zipf:ws=512 --link 1G --repeat 3`
	fl := c.Flags()
	fl.StringVar(&f.load, "load", "touch:ws=512", "the guest's load, as of pagewarp bench relocate")
	fl.StringVar(&f.ram, "ram", "1G", "the guest's memory, such as 512M or 4G")
	fl.StringVar(&f.link, "link", "none", "limit of the link in bit/s, such as 1G or 10G, or none")
	fl.IntVar(&f.vcpus, "vcpus", 1, "the guest's virtual CPUs")
	fl.BoolVar(&f.tls, "tls", false, "run pagewarp over mutual TLS")
	fl.DurationVar(&f.limit, "limit", time.Minute, "give a relocation up after this time")
	fl.StringVar(&f.out, "out", filepath.Join("build", "bench", "trace"), "`FOLDER` for the trace")
	f.codec, f.watch = "auto", 2*time.Second
	f.repeatFlag(c, 1)
	f.vmFlags(c)
	return c
}
