package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/bench/engine"
	"github.com/pagewarp/pagewarp/bench/fault"
	benchreport "github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// faultFlags are those that ask for a table of combinations.
type faultFlags struct {
	threads, channels []int
	regions           []string
	pageSize          string
	count, streams    int
	link, qdisc       string
}

// table reports whether the plain measurement, with and without precache, does
// not do: there are several combinations, or other memory.
func (f *faultFlags) table() bool {
	return len(f.threads) > 1 || len(f.channels) > 1 || len(f.regions) > 0 || f.pageSize != "4K"
}

// sweep reads the flags.
func (f *faultFlags) sweep() (o fault.SweepOptions, err error) {
	o = fault.SweepOptions{Threads: f.threads, Channels: f.channels, Count: f.count}
	switch f.pageSize {
	case "4K":
	case "2M":
		o.PageSize = fault.HugePageSize
	default:
		return o, usagef("--page-size %q: give 4K or 2M", f.pageSize)
	}
	for _, s := range f.regions {
		n, err := engine.ParseRAM(s)
		if err != nil {
			return o, usagef("--region: %w", err)
		}
		o.Regions = append(o.Regions, n)
	}
	if len(f.threads) == 0 || len(f.channels) == 0 {
		return o, usagef("--threads and --channels: give at least one number of each")
	}
	if err := o.Check(); err != nil {
		return o, usagef("%w", err)
	}
	return o, nil
}

func newBenchFault() *cobra.Command {
	var f benchFlags
	var ff faultFlags
	c := benchmark("fault", "Demand faults through the engine, against the floors", &f, func(ctx context.Context, step func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error) {
		so, err := ff.sweep()
		if err != nil {
			return nil, nil, nil, err
		}
		cpus, err := f.cpus()
		if err = errors.Join(err, f.check()); err != nil {
			return nil, nil, nil, err
		}
		link, err := engine.ParseLink(ff.link)
		if err != nil {
			return nil, nil, nil, usagef("--link: %w", err)
		}
		qdisc, known := map[string]string{"fifo": "", "pfifo_fast": rig.QdiscCard}[ff.qdisc]
		if !known || qdisc != "" && link == 0 {
			return nil, nil, nil, usagef("--qdisc %q: fifo and pfifo_fast are possible, with --link", ff.qdisc)
		}
		if ff.streams < 0 || ff.streams > fault.MaxChannels {
			return nil, nil, nil, usagef("--streams %d: between 1 and %d are possible, or 0 for the default", ff.streams, fault.MaxChannels)
		}
		if ff.table() {
			if link > 0 || ff.streams > 0 {
				return nil, nil, nil, usagef("--link and --streams are of the plain measurement, not of a table")
			}
			so.CPUs, so.Repeat, so.TLS, so.Step = cpus, f.repeat, f.tls, step
			r, err := fault.Sweep(ctx, so)
			if r == nil {
				return nil, nil, nil, err
			}
			return r, nil, r.Text, err
		}
		r, err := fault.Run(ctx, fault.RunOptions{Count: ff.count, Repeat: f.repeat, Threads: ff.threads[0], Channels: ff.channels[0], Precache: ff.streams, Link: link, Qdisc: qdisc, TLS: f.tls, CPUs: cpus, Step: step})
		if r == nil {
			return nil, nil, nil, err
		}
		return r, r.Verdicts(), r.Text, err
	})
	c.Long = `Touch pages of a process's memory that a fault daemon and a page server serve,
each a process of its own, and time each touch: with the link idle, and while
precache runs at full rate; the floors are taken in the same run, over the same link.

With --link the two ends are network namespaces, between which a token bucket with a
queue of its own (tbf, 2 ms of burst, 50 ms of queue) lets so much pass; needs root.
The queue is one, first in, first out, as a switch's; with --qdisc pfifo_fast it is that
of a host's own network card under Linux's default, three queues by priority.

With several numbers of --threads or --channels, with --region or --page-size 2M,
the table of all combinations is made instead, with the link idle: faults a second,
p50 and p99, and the memory that the two daemons have of their own. A region of
--region has holes wherever nothing is touched, so that it may be larger than this
machine's memory. --page-size 2M needs huge pages in reserve, one for each fault
and a tenth more; what is missing is said, not reserved.`
	c.Example = `  pagewarp bench fault
  pagewarp bench fault --link 1G --streams 1
  pagewarp bench fault --link 1G --qdisc pfifo_fast
  pagewarp bench fault --threads 1,4,16,64 --channels 1,2,4
  pagewarp bench fault --region 1G,64G,1T
  pagewarp bench fault --page-size 2M --threads 1,4`
	f.repeatFlag(c, 5)
	f.engineFlags(c)
	fl := c.Flags()
	fl.IntSliceVar(&ff.threads, "threads", []int{1}, "how many threads touch at a time, link idle")
	fl.IntSliceVar(&ff.channels, "channels", []int{1}, "demand connections")
	fl.IntVar(&ff.count, "count", 0, "faults in a pass; by default 3000, of 2 MiB pages 64")
	fl.StringVar(&ff.link, "link", "none", "limit of the link in bits per second, such as 1G")
	fl.StringVar(&ff.qdisc, "qdisc", "fifo", "what orders packets that wait for the limited link: fifo or pfifo_fast")
	fl.IntVar(&ff.streams, "streams", 0, "precache connections; 0 is the default")
	fl.StringVar(&ff.pageSize, "page-size", "4K", "size of a page, 4K or 2M")
	fl.StringSliceVar(&ff.regions, "region", nil, "the region's `SIZES`, such as 1G or 1T, sparse; by default just what is touched")
	return c
}
