package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/progress"
	"github.com/pagewarp/pagewarp/cmd/internal/units"
	"github.com/pagewarp/pagewarp/relocate"
)

// redrawEvery is the pace of --watch and top.
const redrawEvery = time.Second

func newStatus(a *app) *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use: "status [NAME]", Short: "Show relocations, live and the last ended ones",
		Long: "Show the relocations of this host's daemon, as source and as destination; with\nNAME those of one machine, in detail.",
		Args: args(cobra.MaximumNArgs(1)), ValidArgsFunction: a.names,
		RunE: func(cmd *cobra.Command, n []string) error {
			vm := strings.Join(n, "")
			one := func(ctx context.Context, w io.Writer) error {
				r, err := a.daemon().Status(ctx, vm)
				if err == nil && vm != "" && len(r.Relocations) == 0 {
					err = a.known(ctx, vm)
				}
				if err != nil {
					return err
				}
				b := *a
				b.out = w
				return b.print(r, func(w io.Writer) { statusText(w, r, vm != "") })
			}
			if !watch {
				return one(cmd.Context(), a.out)
			}
			return a.redraw(cmd.Context(), one)
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show it again every second, until Ctrl-C")
	return c
}

// known is an error if no machine of this host has that name: a typing error must not
// look like a machine at rest.
func (a *app) known(ctx context.Context, vm string) error {
	ms, err := a.daemon().Machines(ctx)
	if err != nil {
		return err
	}
	for _, m := range ms {
		if m.Name == vm {
			return nil
		}
	}
	return fmt.Errorf("%s: no such machine, and no relocation of one is remembered here; `pagewarp vm list` and `pagewarp status` show those there are", vm)
}

func newTop(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "top", Short: "Live table of machines, and of relocations under way and lately ended", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.redraw(cmd.Context(), func(ctx context.Context, w io.Writer) error {
				r, err := a.daemon().Status(ctx, "")
				if err != nil {
					return err
				}
				ms, err := a.daemon().Machines(ctx)
				if err != nil {
					return err
				}
				header(w, r.Daemon)
				machineTable(w, ms)
				if rs := newest(r.Relocations, topEnded); len(rs) > 0 {
					fmt.Fprintln(w)
					relocationTable(w, rs)
				}
				return nil
			})
		},
	}
}

// topEnded is how many ended relocations top shows, so that those under way are seen.
const topEnded = 8

// newest leaves out all but the last n of those that have ended.
func newest(rs []relocate.Status, n int) (out []relocate.Status) {
	for _, s := range slices.Backward(rs) {
		if s.Phase.Final() {
			if n--; n < 0 {
				continue
			}
		}
		out = append(out, s)
	}
	slices.Reverse(out)
	return out
}

// redraw shows what one writes every second until Ctrl-C. A terminal is
// repainted, anything else gets one after the other.
func (a *app) redraw(ctx context.Context, one func(context.Context, io.Writer) error) error {
	ctx, stop := a.untilInterrupt(ctx)
	defer stop()
	tick := time.NewTicker(redrawEvery)
	defer tick.Stop()
	clear := ""
	if isTerminal(a.out) {
		clear = "\x1b[H\x1b[2J" // ECMA-48: cursor home, erase display
	}
	for {
		var b strings.Builder
		if err := one(ctx, &b); err != nil {
			if ctx.Err() != nil {
				return nil // Ctrl-C is how one leaves
			}
			return err
		}
		if _, err := io.WriteString(a.out, clear+b.String()); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func header(w io.Writer, d api.VersionReply) {
	fmt.Fprintf(w, "pagewarpd %s, pid %d, up %s, peers at %s, %s\n", d.Version, d.PID, progress.Age(d.Started, time.Now()), strings.Join(d.Listen, " "), d.Security)
	if d.Warning != "" {
		fmt.Fprintf(w, "WARNING: %s\n", d.Warning)
	}
	fmt.Fprintln(w)
}

func statusText(w io.Writer, r api.StatusReply, detail bool) {
	if r.Daemon.Warning != "" {
		fmt.Fprintf(w, "WARNING: %s\n", r.Daemon.Warning)
	}
	if len(r.Relocations) == 0 {
		fmt.Fprintln(w, "no relocations")
		return
	}
	relocationTable(w, r.Relocations)
	if detail {
		last := r.Relocations[len(r.Relocations)-1]
		fmt.Fprintf(w, "\n%s", progress.Summary(last))
		if !last.Phase.Final() {
			fmt.Fprintf(w, "  %-9s %d of %d up, %d cuts\n", "channels", last.ChannelsUp, last.ChannelsTotal, last.Reconnects)
		}
	}
}

func relocationTable(w io.Writer, rs []relocate.Status) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "VM\tROLE\tPEER\tPHASE\tDONE\tDEMAND\tPRECACHE\tRATE\tETA\tFAULT P50/P99\tDOWNTIME\tAGE")
	for _, s := range rs {
		rate, eta, fault, down, phase := "-", "-", "-", "-", string(s.Phase)
		if !s.Phase.Final() {
			if s.RateBytes > 0 {
				rate = units.FormatSize(uint64(s.RateBytes)) + "/s"
			}
			if s.ETASec > 0 {
				eta = progress.Seconds(s.ETASec)
			}
			if !s.Connected {
				phase += " (cut)"
			}
		}
		if f := s.FaultLatency; f.Count > 0 {
			fault = progress.Micros(f.P50) + "/" + progress.Micros(f.P99)
		}
		if s.DowntimeMS > 0 {
			down = fmt.Sprintf("%.1f ms", s.DowntimeMS)
		}
		// What ended before this daemon was started is known without its counters.
		done, demand, precache := "-", "-", "-"
		if s.PagesTotal > 0 {
			done = fmt.Sprintf("%.0f %%", progress.Percent(s))
			demand, precache = strconv.FormatUint(s.PagesDemand, 10), strconv.FormatUint(s.PagesPrecache, 10)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cmp.Or(s.VM, "-"), s.Role, s.Peer, phase, done, demand, precache, rate, eta, fault, down, progress.Age(s.Started, time.Now()))
	}
	t.Flush()
}
