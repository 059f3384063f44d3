package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	benchreport "github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/bench/specweb"
	"github.com/pagewarp/pagewarp/bench/specweb/model"
	"github.com/pagewarp/pagewarp/bench/specweb/server"
)

func init() { server.Main() } // --self starts this program anew as the server

// specwebFlags are those of pagewarp bench specweb.
type specwebFlags struct {
	cfg      specweb.Config
	duration time.Duration
	targets  []string
	self     bool
	out      string
	json     string
}

func newBenchSpecweb() *cobra.Command {
	var f specwebFlags
	c := &cobra.Command{
		Use: "specweb", Short: "Put a SPECweb-style load on a web server",
		Long: `Put a SPECweb-style load on a web server: simultaneous sessions of visitors who
request pages with their images, think, and go on (closed loop); or pages at a
fixed rate whose times count from when they were due (--open-loop). The server is
that of the test guest, or with --self one on this machine. Results are
SPECweb-style: they are no SPEC metric, and not to be compared with one.

Limits on page times are those of the workload; --scale multiplies think times
and data sizes only. The report, its bins of 100 ms and its plots are written to
the folder --out; after Ctrl-C, for the time up to then.`,
		Example: `  pagewarp bench specweb --self --workload banking --sessions 50 --scale 0.02
  pagewarp bench specweb --workload support --scale 0.02 --target http://10.77.0.100
  pagewarp bench specweb --workload banking --open-loop 100 --target http://10.77.0.100,https://10.77.0.100`,
		Args: args(cobra.NoArgs),
	}
	fl := c.Flags()
	fl.StringVar(&f.cfg.Workload, "workload", model.Banking, strings.Join(model.Names(), ", "))
	fl.IntVar(&f.cfg.Sessions, "sessions", 50, "simultaneous sessions; in an open loop, pages under way at most")
	fl.Float64Var(&f.cfg.Scale, "scale", 0.05, "factor on think times and data sizes, the same as the server's")
	fl.Uint64Var(&f.cfg.Seed, "seed", 1, "of the sessions' ways, think times and downloads")
	fl.DurationVar(&f.duration, "duration", 30*time.Second, "length of the measurement, after the ramp")
	fl.DurationVar(&f.cfg.Ramp, "ramp", 0, "spread the start of the sessions over this time")
	fl.Float64Var(&f.cfg.Rate, "open-loop", 0, "pages a second at a fixed `RATE`, instead of the closed loop")
	fl.StringSliceVar(&f.targets, "target", nil, "`URL` of the server: http://HOST:PORT, and https://HOST:PORT for pages over TLS")
	fl.BoolVar(&f.self, "self", false, "start a server on this machine for the time of the load")
	fl.StringVar(&f.out, "out", filepath.Join("build", "bench", "specweb"), "`FOLDER` for the report and the plots")
	fl.StringVar(&f.json, "json", "", "write the report to `FILE`, too; - is standard output, in place of the table")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		a := &app{}
		ctx, stop := a.untilInterrupt(cmd.Context())
		defer stop()
		return f.run(ctx, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return c
}

func (f *specwebFlags) check() error {
	switch {
	case f.self == (len(f.targets) > 0):
		return usagef("give either --target URL or --self")
	case f.duration < time.Second || f.duration > 24*time.Hour:
		return usagef("--duration %s: give a time from 1s to 24h", f.duration)
	case f.cfg.Ramp < 0:
		return usagef("--ramp %s: give a time", f.cfg.Ramp)
	case f.cfg.Sessions < 1 || f.cfg.Sessions > specweb.MaxSessions:
		return usagef("--sessions %d: give a number from 1 to %d", f.cfg.Sessions, specweb.MaxSessions)
	case !(f.cfg.Scale > 0 && f.cfg.Scale <= 1):
		return usagef("--scale %g: give a factor above 0, and 1 at most", f.cfg.Scale)
	case !(f.cfg.Rate >= 0 && f.cfg.Rate <= 1e6):
		return usagef("--open-loop %g: give a rate above 0", f.cfg.Rate)
	}
	if _, err := model.ByName(f.cfg.Workload); err != nil {
		return usagef("--workload: %w", err)
	}
	for _, t := range f.targets {
		switch {
		case strings.HasPrefix(t, "http://") && f.cfg.Plain == "":
			f.cfg.Plain = t
		case strings.HasPrefix(t, "https://") && f.cfg.Secure == "":
			f.cfg.Secure = t
		default:
			return usagef("--target %q: give http://HOST:PORT and https://HOST:PORT, each once at most", t)
		}
	}
	return nil
}

func (f *specwebFlags) run(ctx context.Context, out, errOut io.Writer) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	if err := writableFolder("out", f.out); err != nil {
		return err
	}
	if f.json != "-" {
		if err := writable("json", f.json); err != nil {
			return err
		}
	}
	file := benchFile{Benchmark: "specweb", Started: time.Now().UTC(), Machine: benchreport.ThisMachine(), Versions: benchreport.BuildVersions()}
	file.Commit = file.Versions.Commit
	if f.self {
		l, err := server.StartLocal(ctx, f.cfg.Workload, f.cfg.Sessions, f.cfg.Scale)
		if ctx.Err() != nil {
			return &exitError{exitInterrupted, errors.New("interrupted before the load began")}
		}
		if err != nil {
			return err
		}
		defer func() {
			if stopErr := l.Stop(); stopErr != nil && err == nil {
				err = fmt.Errorf("the server on this machine: %w", stopErr)
			}
		}()
		f.cfg.Plain, f.cfg.Secure = "http://"+l.Plain, "https://"+l.Secure
	}
	run, err := specweb.Start(ctx, f.cfg)
	if ctx.Err() != nil {
		return &exitError{exitInterrupted, errors.New("interrupted before the load began")}
	}
	if err != nil {
		return err
	}
	timed, cancel := context.WithTimeout(ctx, f.cfg.Ramp+f.duration)
	defer cancel()
	run.Live(timed, errOut, isTerminal(errOut))
	complete := ctx.Err() == nil
	l := run.Stop()
	from := l.Start.Add(f.cfg.Ramp)
	if from.After(l.End) {
		return &exitError{exitInterrupted, errors.New("interrupted in the ramp: there is nothing to report")}
	}
	result := run.Result(l, from, l.End, complete)
	file.Result = result
	if err := f.write(out, file, result); err != nil {
		return err
	}
	if !complete {
		return &exitError{exitInterrupted, errors.New("interrupted; the report is of the time up to then")}
	}
	if result.Errors == result.Counts.Pages() { // of none at all, too
		return errors.New("not one page was answered")
	}
	if result.Corrupt > 0 {
		return fmt.Errorf("%d answers were not what they must be: %s", result.Corrupt, strings.Join(result.FirstErrors, "; "))
	}
	return nil
}

// write writes the report and the plots, and shows the table or the report.
func (f *specwebFlags) write(out io.Writer, file benchFile, r specweb.Result) error {
	base := filepath.Join(f.out, "specweb-"+r.Workload)
	if err := benchreport.Write(base+".json", file); err != nil {
		return err
	}
	if err := r.WritePlot(base+".svg", base+".png"); err != nil {
		return err
	}
	switch f.json {
	case "":
	case "-":
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(file)
	default:
		if err := benchreport.Write(f.json, file); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "%d × %s, Linux %s, load %.1f\n\n", file.Machine.Cores, file.Machine.CPU, file.Machine.Kernel, file.Machine.LoadAvg)
	if err := r.Text(out); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\n  %s.json\n  %s.png\n", base, base)
	return err
}
