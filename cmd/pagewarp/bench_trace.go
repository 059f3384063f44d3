package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/bench/engine"
	benchreport "github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/bench/trace"
)

func newBenchTrace() *cobra.Command {
	c := &cobra.Command{
		Use: "trace", Short: "Record the faults of a real relocation, and replay them in a simulation",
		Long: `Record which pages a guest touches while its memory comes over, and replay that
through pagewarp's own planner over a simulated network: what a policy of precache
is worth, in seconds of real time, at round trips and bandwidths that this machine
does not have.`,
		Args: group, RunE: help,
	}
	c.AddCommand(newBenchRecord(), newBenchSimulate(), newBenchStudy())
	return c
}

// simulateFlags are those of pagewarp bench trace simulate.
type simulateFlags struct {
	benchFlags
	traces, policies []string
	rtts             []string
	links            []string
	losses           []float64
	vcpus            []int
	out              string
	o                trace.Options
}

// conditions parses round trips and bandwidths.
func conditions(rtts, links []string) (ds []time.Duration, bits []float64, err error) {
	for _, rtt := range rtts {
		d, err := time.ParseDuration(rtt)
		if err != nil || d <= 0 {
			return nil, nil, usagef("--rtt %s: give a time above 0, such as 100us", rtt)
		}
		ds = append(ds, d)
	}
	for _, link := range links {
		bytes, err := engine.ParseLink(link)
		if err != nil || bytes == 0 {
			return nil, nil, usagef("--link %s: give a bandwidth such as 10G", link)
		}
		bits = append(bits, float64(bytes)*8)
	}
	return ds, bits, nil
}

// maxSimulations bounds the product of all lists.
const maxSimulations = 10_000

func newBenchSimulate() *cobra.Command {
	var f simulateFlags
	c := benchmark("simulate", "Replay traces through the planner over a simulated network", &f.benchFlags,
		func(ctx context.Context, step func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error) {
			// 0 is a default for the simulation, and would be another number than was asked for.
			if f.o.Precache < 1 || f.o.Demand < 1 || f.o.ReadAround < 1 || f.o.RunPages < 1 {
				return nil, nil, nil, usagef("--channels %d, --demand-channels %d, --read-around %d, --run %d: give at least 1 of each", f.o.Precache, f.o.Demand, f.o.ReadAround, f.o.RunPages)
			}
			if _, _, err := conditions(f.rtts, f.links); err != nil {
				return nil, nil, nil, err
			}
			if err := writableFolder("out", f.out); err != nil {
				return nil, nil, nil, err
			}
			cs, err := f.run(ctx, step)
			if err != nil {
				return nil, nil, nil, err
			}
			return cs, nil, func(w io.Writer) error { return f.finish(w, cs) }, nil
		})
	c.Long = `Replay traces through pagewarp's planner, window and limiter, the real ones, over
a simulated network, with every combination of the values given. A trace is a file
of pagewarp bench trace record, or is made: PATTERN:NAME=VALUE,… with the patterns
` + strings.Join(trace.Patterns(), ", ") + ` and the names ram, ws, zero (MiB), touches, think,
exponent, stride, past and seed. Policies: ` + strings.Join(trace.PolicyNames(), ", ") + `, in the order
in which the planner asks them, as A+B.`
	c.Example = `  pagewarp bench trace simulate --trace zipf:ws=512 --policy default,sweep,none
  pagewarp bench trace simulate --trace build/bench/trace/redis.json.gz --rtt 100us,1ms,10ms,100ms --link 1G,100G`
	fl := c.Flags()
	fl.StringArrayVar(&f.traces, "trace", []string{"zipf"}, "a `FILE`, or a made pattern; may be repeated")
	fl.StringSliceVar(&f.policies, "policy", []string{"default"}, "policies to compare")
	fl.StringSliceVar(&f.rtts, "rtt", []string{"100us"}, "round trips of the network")
	fl.StringSliceVar(&f.links, "link", []string{"10G"}, "bandwidths in bit/s")
	fl.Float64SliceVar(&f.losses, "loss", []float64{0}, "shares of segments that are lost")
	fl.IntSliceVar(&f.vcpus, "vcpus", []int{0}, "vCPUs that work at the trace; 0 for as many as it was recorded with")
	fl.BoolVar(&f.o.Fair, "fair", false, "the link serves connections by turns, not in the order of arrival")
	fl.IntVar(&f.o.Precache, "channels", 2, "precache connections")
	fl.IntVar(&f.o.Demand, "demand-channels", 1, "demand connections")
	fl.Uint32Var(&f.o.ReadAround, "read-around", 1, "pages that a demand fetch takes along, a power of two")
	fl.Uint32Var(&f.o.RunPages, "run", 32, "most pages of a precache fetch")
	fl.Float64Var(&f.o.Ratio, "ratio", 0, "bytes on the wire for a byte of precache; 0 for what was recorded")
	fl.DurationVar(&f.o.Limit, "limit", 10*time.Minute, "most simulated time")
	fl.Uint64Var(&f.o.Seed, "seed", 1, "of the losses")
	fl.StringVar(&f.out, "out", filepath.Join("build", "bench"), "`FOLDER` for the plots trace-N.svg and .png")
	return c
}

// run makes every simulation.
func (f *simulateFlags) run(ctx context.Context, step func(string)) (cs []*trace.Comparison, err error) {
	if n := len(f.traces) * len(f.policies) * len(f.rtts) * len(f.links) * len(f.losses) * len(f.vcpus); n == 0 || n > maxSimulations {
		return nil, usagef("%d combinations: 1 to %d are possible", n, maxSimulations)
	}
	for _, name := range f.traces {
		t, err := loadTrace(name)
		if err != nil {
			return nil, err
		}
		step(fmt.Sprintf("%s: %d touches", t.Load, len(t.Touches)))
		c := &trace.Comparison{Load: t.Load, Origin: t.Origin}
		for o, err := range f.each() {
			if err != nil {
				return nil, err
			}
			r, err := trace.Simulate(ctx, t, o)
			if err != nil {
				return nil, err
			}
			c.Results = append(c.Results, r)
		}
		cs = append(cs, c)
	}
	return cs, nil
}

// each yields the options of every combination.
func (f *simulateFlags) each() func(yield func(trace.Options, error) bool) {
	return func(yield func(trace.Options, error) bool) {
		rtts, links, err := conditions(f.rtts, f.links)
		if err != nil {
			yield(f.o, err)
			return
		}
		for _, link := range links {
			for _, rtt := range rtts {
				for _, loss := range f.losses {
					for _, vcpus := range f.vcpus {
						for _, policy := range f.policies {
							o := f.o
							o.Policies, o.Loss, o.VCPUs, o.RTT, o.Bandwidth = policy, loss, vcpus, rtt, link
							if !yield(o, nil) {
								return
							}
						}
					}
				}
			}
		}
	}
}

// loadTrace reads a file, or makes a pattern.
func loadTrace(name string) (*trace.Trace, error) {
	kind, _, _ := strings.Cut(name, ":")
	for _, p := range trace.Patterns() {
		if p == kind {
			s, err := trace.ParseSynthetic(name)
			if err != nil {
				return nil, usagef("--trace: %w", err)
			}
			return s.Make()
		}
	}
	return trace.Read(name)
}

func (f *simulateFlags) finish(w io.Writer, cs []*trace.Comparison) error {
	for i, c := range cs {
		if err := c.Text(w); err != nil {
			return err
		}
		base := filepath.Join(f.out, fmt.Sprintf("trace-%d", i+1))
		if err := c.WritePlot(base+".svg", base+".png"); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "\n  %s.png\n\n", base); err != nil {
			return err
		}
	}
	return nil
}
