package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/cmd/internal/progress"
	"github.com/pagewarp/pagewarp/cmd/internal/units"
	"github.com/pagewarp/pagewarp/relocate"
)

type relocateFlags struct {
	to        string
	bandwidth units.Rate
	report    string // --json FILE or -
	detach    bool
	wait      bool
	keepWarm  bool
	preLimit  time.Duration
	opts      relocate.Options
}

func newRelocate(a *app) *cobra.Command {
	var f relocateFlags
	c := &cobra.Command{
		Use: "relocate NAME --to HOST:PORT", Short: "Move a running machine to another host",
		Long: `Move a running machine to another host, whose daemon starts the same QEMU there.
The guest stops for some milliseconds, runs on at the destination, and its
memory follows: on demand where the guest touches it, the rest in the background.
With --pre-transfer most of it is copied before, and only what the guest has
written since follows.

Ctrl-C before the switch-over rolls back: the machine runs on here. After it,
the daemons finish on their own; ` + "`pagewarp status NAME`" + ` shows how far they are.

Progress goes to standard error, the summary to standard output.

` + rateHelp + `

Exit codes: 0 moved, 1 failed, 2 usage, 3 rolled back, 4 machine lost, 5 daemon
unreachable, 130 interrupted.`,
		Example: `  pagewarp relocate web1 --to hostB:7070
  pagewarp relocate web1 --to hostB:7070 --bandwidth 2G --json report.json
  pagewarp relocate web1 --to hostB:7070 --pre-transfer --pre-transfer-timeout 2m
  pagewarp relocate web1 --to hostB:7070 --json - | jq .downtime_ms`,
		Args: nameFirst(1), ValidArgsFunction: a.names,
		RunE: func(cmd *cobra.Command, n []string) error {
			req, err := f.request(cmd)
			if err != nil {
				return err
			}
			m := &move{app: a, cmd: cmd, vm: n[0], flags: f}
			return m.run(req)
		},
	}
	p := c.Flags()
	p.StringVar(&f.to, "to", "", "`HOST:PORT` of the destination's daemon")
	p.BoolVar(&f.opts.Paused, "paused", false, "leave the machine paused at the destination")
	p.BoolVar(&f.opts.OnDemandOnly, "on-demand-only", false, "no background stream: pages go only when touched, and the source is needed until all were; the command bandwidth begins one")
	p.StringVar(&f.opts.Precache, "precache", "", "`POLICIES` of the background stream, a list of "+strings.Join(relocate.PolicyNames, ",")+" (default: "+strings.Join(relocate.DefaultPolicyNames, ",")+")")
	p.Var(&f.bandwidth, "bandwidth", "cap of the background stream, e.g. 2G (2 Gbit/s); \"none\" for no cap (default: the daemon's)")
	p.StringVar(&f.opts.Codec, "codec", "", "compression of the background stream: auto, none, s2, zstd (default: the daemon's)")
	p.IntVar(&f.opts.DemandChannels, "demand-channels", 0, "connections for demand faults (default: the daemon's)")
	p.IntVar(&f.opts.PrecacheChannels, "precache-channels", 0, "connections for the background stream (default: the daemon's)")
	p.StringVar(&f.opts.FaultSource, "fault-source", "", "how the destination catches faults: auto, device (the kernel module), userfaultfd (default: its configuration)")
	p.StringVar(&f.opts.Transport, "transport", "", "how pages travel: tcp, rdma (not encrypted), auto (rdma where both hosts' policies say so and it is there) (default tcp)")
	p.StringVar(&f.opts.RDMAPin, "rdma-pin", "", "when the source registers its image for RDMA: lazy (as it is wanted), all (at the freeze), odp (never pinned, where the device has on-demand paging) (default lazy)")
	p.StringVar(&f.opts.RDMAPrecache, "rdma-precache", "", "how the background stream comes by RDMA: read (RDMA READ, as it is in memory), send (RDMA SEND, compressed by --codec), tcp (over the connections, compressed) (default read; send with --codec s2 or zstd)")
	p.StringVar(&f.opts.RDMALost, "rdma-lost", "", "what pages do where RDMA is lost, e.g. a link goes down: tcp (travel by TCP), wait (for RDMA) (default tcp)")
	p.StringVar(&f.opts.RDMALand, "rdma-land", "", "where pages land by RDMA: alias (in the guest's memory, where it was reserved), staging (in a buffer, to be copied), auto (alias on demand; precache by the link's rate) (default auto)")
	p.StringVar(&f.opts.Warm, "warm", "", "what the destination may have of the memory: a `NAME` in its cache, or the path of a file there (default: what it kept of the machine)")
	p.BoolVar(&f.opts.PreTransfer, "pre-transfer", false, "copy the memory before the switch-over, while the guest runs here; what it writes meanwhile is sent again after it")
	p.DurationVar(&f.preLimit, "pre-transfer-timeout", relocate.DefaultPreTransferTimeout, "switch over after this time with what has been copied")
	p.BoolVar(&f.keepWarm, "keep-warm", true, "keep the memory here for the machine's return, if the daemon has a cache")
	p.BoolVar(&f.opts.KeepSource, "keep-source", false, "leave the stopped source QEMU and its memory file in place")
	p.StringVar(&f.report, "json", "", "write the final status as JSON to `FILE`, \"-\" for standard output")
	p.BoolVar(&f.detach, "detach", false, "return as soon as it has started")
	p.BoolVar(&f.wait, "wait", true, "wait until every page has arrived; --wait=false is --detach")
	p.Lookup("bandwidth").DefValue = "" // the help says what it is
	c.RegisterFlagCompletionFunc("bandwidth", rates)
	c.RegisterFlagCompletionFunc("to", cobra.NoFileCompletions)
	c.RegisterFlagCompletionFunc("pre-transfer-timeout", cobra.FixedCompletions([]string{"1m", "5m", "10m", "1h"}, cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("precache", completeList(relocate.PolicyNames))
	c.RegisterFlagCompletionFunc("codec", cobra.FixedCompletions(config.Codecs, cobra.ShellCompDirectiveNoFileComp)) // fails only for an unknown flag
	c.RegisterFlagCompletionFunc("fault-source", cobra.FixedCompletions(relocate.FaultSources, cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("transport", cobra.FixedCompletions(relocate.Transports, cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("rdma-pin", cobra.FixedCompletions(relocate.RDMAPins, cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("rdma-precache", cobra.FixedCompletions(relocate.RDMAPrecaches, cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("rdma-lost", cobra.FixedCompletions(relocate.RDMALosts, cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("rdma-land", cobra.FixedCompletions(relocate.RDMALands, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// request checks the flags before anything is asked of the daemon.
func (f *relocateFlags) request(cmd *cobra.Command) (api.RelocateRequest, error) {
	r := api.RelocateRequest{To: f.to, Options: f.opts}
	r.DropWarm = !f.keepWarm
	if cmd.Flags().Changed("pre-transfer-timeout") {
		if !f.opts.PreTransfer {
			return r, usagef("--pre-transfer-timeout needs --pre-transfer")
		}
		if f.preLimit < time.Millisecond || f.preLimit > relocate.MaxPreTransferTimeout {
			return r, usagef("--pre-transfer-timeout %v: allowed are 1ms to %v", f.preLimit, relocate.MaxPreTransferTimeout)
		}
		r.PreTransferTimeoutMS = f.preLimit.Milliseconds()
	}
	if f.opts.PreTransfer && f.opts.Transport == relocate.TransportRDMA {
		return r, usagef("--pre-transfer and --transport rdma exclude each other")
	}
	if f.report != "" && f.report != "-" {
		// Said now and not when the machine has moved.
		if fi, err := os.Stat(filepath.Dir(f.report)); err != nil || !fi.IsDir() {
			return r, usagef("--json %s: its directory %s does not exist", f.report, filepath.Dir(f.report))
		}
	}
	if f.to == "" {
		return r, usagef("--to is missing: the address of the destination's daemon, HOST:PORT")
	}
	if err := config.CheckPeer(f.to); err != nil {
		return r, usagef("--to: %w", err)
	}
	if cmd.Flags().Changed("bandwidth") {
		r.Bandwidth, r.NoCap = int64(f.bandwidth), f.bandwidth == 0
	}
	if w := f.opts.Warm; w != "" && !filepath.IsAbs(w) && !config.ValidName(w) {
		return r, usagef("--warm %q: the name of a machine, or the absolute path of a file at the destination", w)
	}
	if f.opts.Codec != "" && !slices.Contains(config.Codecs, f.opts.Codec) {
		return r, usagef("--codec %q: choose one of %s", f.opts.Codec, strings.Join(config.Codecs, ", "))
	}
	if f.opts.FaultSource != "" && !slices.Contains(relocate.FaultSources, f.opts.FaultSource) {
		return r, usagef("--fault-source %q: choose one of %s", f.opts.FaultSource, strings.Join(relocate.FaultSources, ", "))
	}
	if f.opts.Transport != "" && !slices.Contains(relocate.Transports, f.opts.Transport) {
		return r, usagef("--transport %q: choose one of %s", f.opts.Transport, strings.Join(relocate.Transports, ", "))
	}
	if f.opts.RDMAPin != "" && !slices.Contains(relocate.RDMAPins, f.opts.RDMAPin) {
		return r, usagef("--rdma-pin %q: choose one of %s", f.opts.RDMAPin, strings.Join(relocate.RDMAPins, ", "))
	}
	if f.opts.RDMAPrecache != "" && !slices.Contains(relocate.RDMAPrecaches, f.opts.RDMAPrecache) {
		return r, usagef("--rdma-precache %q: choose one of %s", f.opts.RDMAPrecache, strings.Join(relocate.RDMAPrecaches, ", "))
	}
	if f.opts.RDMALost != "" && !slices.Contains(relocate.RDMALosts, f.opts.RDMALost) {
		return r, usagef("--rdma-lost %q: choose one of %s", f.opts.RDMALost, strings.Join(relocate.RDMALosts, ", "))
	}
	if f.opts.RDMALand != "" && !slices.Contains(relocate.RDMALands, f.opts.RDMALand) {
		return r, usagef("--rdma-land %q: choose one of %s", f.opts.RDMALand, strings.Join(relocate.RDMALands, ", "))
	}
	if cmd.Flags().Changed("precache") {
		if f.opts.OnDemandOnly {
			return r, usagef("--precache and --on-demand-only exclude each other")
		}
		if err := relocate.CheckPolicies(strings.Split(f.opts.Precache, ",")); err != nil {
			return r, usagef("--precache: %w", err)
		}
	}
	for name, n := range map[string]int{"demand-channels": f.opts.DemandChannels, "precache-channels": f.opts.PrecacheChannels} {
		if n < 0 || n > config.MaxChannels {
			return r, usagef("--%s %d: allowed are 0 (the daemon's) to %d", name, n, config.MaxChannels)
		}
	}
	if f.detach && cmd.Flags().Changed("wait") && f.wait {
		return r, usagef("--detach and --wait exclude each other")
	}
	f.detach = f.detach || !f.wait
	return r, nil
}

// completeList completes the last name of a list separated by commas, by those
// that it has not got.
func completeList(names []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		had := ""
		if i := strings.LastIndexByte(typed, ','); i >= 0 {
			had = typed[:i+1]
		}
		var out []cobra.Completion
		for _, n := range names {
			if !slices.Contains(strings.Split(had, ","), n) {
				out = append(out, had+n)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

// display chooses how progress is shown on w.
func display(w io.Writer) progress.Display {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return progress.NewTerminal(w)
	}
	return progress.NewLog(w, 2*time.Second)
}

// finish writes the report and the summary, and turns the outcome into an
// error with its exit code.
func (m *move) finish(s relocate.Status) error {
	rerr := m.report(s)
	if m.flags.report != "-" {
		io.WriteString(m.out, progress.Summary(s)) // nobody reads; the exit code remains
	}
	// What has become of the machine is the exit code, whatever became of the report.
	switch {
	case s.Phase == relocate.PhaseLost:
		return &exitError{exitLost, rerr}
	case s.Phase == relocate.PhaseRolledBack && m.interrupted:
		return &exitError{exitInterrupted, rerr}
	case s.Phase == relocate.PhaseRolledBack:
		return &exitError{exitRolledBack, rerr}
	}
	return rerr
}

func (m *move) report(s relocate.Status) error {
	if m.flags.report == "" {
		return nil
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	b = append(b, '\n')
	if m.flags.report == "-" {
		_, err = m.out.Write(b)
		return err
	}
	if err := os.WriteFile(m.flags.report, b, 0o644); err != nil {
		return fmt.Errorf("write report: %w; the relocation itself is %s", err, s.Phase)
	}
	return nil
}
