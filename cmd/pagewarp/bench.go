package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/bench/downtime"
	"github.com/pagewarp/pagewarp/bench/fault"
	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/bench/process"
	"github.com/pagewarp/pagewarp/bench/qemupeer"
	benchreport "github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/bench/stream"
	"github.com/pagewarp/pagewarp/internal/accel"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/transport"
)

func init() {
	// The benchmarks start this program anew for the ends of a measurement.
	touch.Main()
	floor.Main()
	fault.Main()
	process.Main()
	extra = append(extra, newBench)
}

// benchFlags are common to all benchmarks.
type benchFlags struct {
	json   string
	repeat int
	tls    bool
	noPin  bool
	accel  string
	logs   string
}

// benchFile is what --json writes.
type benchFile struct {
	Benchmark string               `json:"benchmark"`
	Started   time.Time            `json:"started"`
	Machine   benchreport.Machine  `json:"machine"`
	Versions  benchreport.Versions `json:"versions"`
	Commit    string               `json:"commit"`
	// Interrupted: the result is what was finished by then.
	Interrupted bool                  `json:"interrupted,omitempty"`
	Result      any                   `json:"result"`
	Verdicts    []benchreport.Verdict `json:"verdicts,omitempty"`
}

// errMissed: a figure is worse than promised. The table has said which.
var errMissed = errors.New("a promised figure was missed; on a busy machine repeat it when the machine is idle")

func newBench() *cobra.Command {
	c := &cobra.Command{
		Use: "bench", Short: "Measure this machine and pagewarp on it",
		Long: `Measure pagewarp against the floors of this machine, taken in the same run: what
is promised are ratios, because absolute times on a shared machine drift. The
exit code is 1 if a promise is missed and --strict is given.`,
		Args: group, RunE: help,
	}
	c.AddCommand(newBenchFloors(), newBenchFault(), newBenchStream(), newBenchQueue(), newBenchCodec(), newBenchPlanner(), newBenchDowntime(), newBenchQEMU(), newBenchSpecweb(), newBenchRelocate(), newBenchProcess(), newBenchPeers(), newBenchTrace(), newBenchPaper())
	return c
}

// benchmark makes one command. run returns the result, the verdicts, and what
// writes the summary; together with an error, or when it was interrupted, those of
// what was finished, if that is anything.
func benchmark(use, short string, f *benchFlags, run func(ctx context.Context, step func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error)) *cobra.Command {
	var strict bool
	c := &cobra.Command{Use: use, Short: short, Args: args(cobra.NoArgs)}
	c.Flags().StringVar(&f.json, "json", "", "write the result to `FILE`, too")
	c.Flags().BoolVar(&strict, "strict", false, "fail if a promised figure is missed")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := writable("json", f.json); err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		file := benchFile{Benchmark: use, Started: time.Now().UTC(), Machine: benchreport.ThisMachine(), Versions: benchreport.BuildVersions()}
		file.Commit = file.Versions.Commit
		began := time.Now()
		result, verdicts, text, err := run(ctx, func(s string) {
			fmt.Fprintf(cmd.ErrOrStderr(), "[%6.1f s] %s\n", time.Since(began).Seconds(), s)
		})
		failure := err
		if ctx.Err() != nil {
			file.Interrupted = true
			failure = interruption(text != nil, err)
		}
		if failure != nil && text == nil {
			return failure
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d × %s, Linux %s, load %.1f\n\n", file.Machine.Cores, file.Machine.CPU, file.Machine.Kernel, file.Machine.LoadAvg)
		// What was measured is not to be lost for a plot that cannot be drawn, or the
		// other way round.
		err = errors.Join(err, text(cmd.OutOrStdout()))
		file.Result, file.Verdicts = result, verdicts
		if f.json != "" {
			err = errors.Join(err, benchreport.Write(f.json, file))
		}
		if failure = errors.Join(failure, err); failure != nil {
			return failure
		}
		for _, v := range verdicts {
			if strict && !v.Met() {
				return errMissed
			}
		}
		return nil
	}
	return c
}

// writable refuses a file that cannot be written: that is to be known before the
// measurement, which may take an hour. Its folder is made.
func writable(flag, path string) error {
	if path == "" {
		return nil
	}
	if err := benchreport.Writable(path); err != nil {
		return fmt.Errorf("--%s: %w; give another with --%[1]s", flag, err)
	}
	return nil
}

// writableFolder is writable for files in a folder.
func writableFolder(flag, dir string) error { return writable(flag, filepath.Clean(dir)+"/") }

// interruption says what an interrupted benchmark leaves: finished results, or
// not, and what err names.
func interruption(results bool, err error) error {
	says := "interrupted; nothing was left behind"
	switch {
	case errors.Is(err, rig.ErrLeftBehind):
		says = "interrupted; " + err.Error()
	case results:
		says = "interrupted; the report has what was finished by then, and nothing else was left behind"
	}
	return &exitError{exitInterrupted, errors.New(says)}
}

func (f *benchFlags) repeatFlag(c *cobra.Command, n int) {
	c.Flags().IntVar(&f.repeat, "repeat", n, "number of passes")
}

func (f *benchFlags) engineFlags(c *cobra.Command) {
	c.Flags().BoolVar(&f.tls, "tls", false, "run all channels over mutual TLS")
	f.pinFlag(c)
}

func (f *benchFlags) pinFlag(c *cobra.Command) {
	c.Flags().BoolVar(&f.noPin, "no-pin", false, "leave the choice of CPUs to the scheduler")
}

func (f *benchFlags) vmFlags(c *cobra.Command) {
	c.Flags().StringVar(&f.accel, "accel", "auto", "accelerator of QEMU: auto, kvm or tcg")
	c.Flags().StringVar(&f.logs, "logs", filepath.Join("build", "bench"), "`FOLDER` for the daemons' logs")
}

func (f *benchFlags) cpus() (floor.CPUs, error) {
	if f.noPin {
		return floor.CPUs{}, nil
	}
	return floor.PickCPUs()
}

func (f *benchFlags) check() error {
	if f.repeat < 1 || f.repeat > 1000 {
		return usagef("--repeat %d: give a number from 1 to 1000", f.repeat)
	}
	return checkAccel(f.accel)
}

// checkAccel refuses an accelerator that there is none of, which QEMU would refuse
// only once the hosts stand; empty is a command without one.
func checkAccel(name string) error {
	if name != "" && !slices.Contains([]string{accel.Auto, accel.KVM, accel.TCG}, name) {
		return usagef("--accel %q: give auto, kvm or tcg", name)
	}
	return nil
}

func newBenchFloors() *cobra.Command {
	var f benchFlags
	c := benchmark("floors", "What this machine does without pagewarp", &f, func(ctx context.Context, step func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error) {
		cpus, err := f.cpus()
		if err = errors.Join(err, f.check()); err != nil {
			return nil, nil, nil, err
		}
		var rs floor.Results
		for i := range f.repeat {
			r, err := floor.Run(ctx, floor.Options{CPUs: cpus, Step: func(s string) {
				step(fmt.Sprintf("pass %d of %d: %s", i+1, f.repeat, s))
			}})
			if err != nil {
				if len(rs) == 0 {
					return nil, nil, nil, err
				}
				return rs, nil, rs.Text, err
			}
			rs = append(rs, r)
		}
		return rs, nil, rs.Text, nil
	})
	f.repeatFlag(c, 3)
	f.pinFlag(c)
	return c
}

func newBenchStream() *cobra.Command {
	var f benchFlags
	var o stream.Options
	c := benchmark("stream", "Precache of a whole image, against the stream floor and over 1 Gbit/s", &f, func(ctx context.Context, step func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error) {
		if o.Precache < 1 || o.Precache > fault.MaxChannels {
			return nil, nil, nil, usagef("--channels %d: give a number from 1 to %d", o.Precache, fault.MaxChannels)
		}
		cpus, err := f.cpus()
		if err = errors.Join(err, f.check()); err != nil {
			return nil, nil, nil, err
		}
		o.CPUs, o.Repeat, o.TLS, o.Step = cpus, f.repeat, f.tls, step
		r, err := stream.Run(ctx, o)
		if r == nil {
			return nil, nil, nil, err
		}
		return r, r.Verdicts(), r.Text, err
	})
	f.repeatFlag(c, 5)
	f.engineFlags(c)
	c.Flags().IntVar(&o.Precache, "channels", 2, "precache connections")
	return c
}

func newBenchDowntime() *cobra.Command {
	var f benchFlags
	var pre bool
	var sizes []uint
	c := benchmark("downtime", "How long a guest of 1, 4 and 16 GiB stands still", &f, func(ctx context.Context, step func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error) {
		if err := f.check(); err != nil {
			return nil, nil, nil, err
		}
		o := downtime.Options{LogDir: f.logs, Repeat: f.repeat, PreTransfer: pre, Accel: f.accel, CacheDir: f.logs, Step: step}
		for _, gib := range sizes {
			if gib == 0 || gib > 1024 {
				return nil, nil, nil, usagef("--size %d: 1 to 1024 GiB", gib)
			}
			o.Sizes = append(o.Sizes, uint64(gib)<<30)
		}
		var err error
		if o.Tools, err = relocationTools(); err != nil {
			return nil, nil, nil, err
		}
		rs, err := downtime.Run(ctx, o)
		if len(rs) == 0 {
			return nil, nil, nil, err
		}
		vs := downtime.Verdicts(rs)
		return rs, vs, func(w io.Writer) error { return benchreport.Verdicts(w, vs) }, err
	})
	f.repeatFlag(c, 10)
	f.vmFlags(c)
	c.Flags().BoolVar(&pre, "pre-transfer", false, "as many relocations again with a pre-transfer, in alternation")
	c.Flags().UintSliceVar(&sizes, "size", []uint{1, 4, 16}, "the guest's memory in GiB, one or several")
	return c
}

// maxTouchMiB leaves the guest's kernel and programs the room that they need.
const maxTouchMiB = 1024 - 96

func newBenchQEMU() *cobra.Command {
	var f benchFlags
	var o qemupeer.Options
	var link int
	c := benchmark("qemu", "The same guest moved by pagewarp and by QEMU's own postcopy", &f, func(ctx context.Context, step func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error) {
		if err := f.check(); err != nil {
			return nil, nil, nil, err
		}
		if o.TouchMiB < 1 || o.TouchMiB > maxTouchMiB {
			return nil, nil, nil, usagef("--touch %d: give a number from 1 to %d; the guest has 1 GiB", o.TouchMiB, maxTouchMiB)
		}
		if link < 0 || link > 400_000 {
			return nil, nil, nil, usagef("--link %d: give a rate in Mbit/s up to 400000, or 0 for no limit", link)
		}
		if _, err := transport.ParseCodecMode(o.Codec); err != nil {
			return nil, nil, nil, usagef("--codec: %w", err)
		}
		tools, err := relocationTools()
		if err != nil {
			return nil, nil, nil, err
		}
		tools.Insecure = !f.tls // QEMU's own has none either
		o.Tools, o.LogDir, o.Repeat, o.Accel, o.CacheDir, o.Step = tools, f.logs, f.repeat, f.accel, f.logs, step
		o.LinkBytesPerSec = uint64(link) * 125_000
		peers, err := qemupeer.Run(ctx, o)
		if len(peers) == 0 {
			return nil, nil, nil, err
		}
		vs := qemupeer.Compare(peers)
		return peers, vs, func(w io.Writer) error {
			return errors.Join(benchreport.PeersTable(w, peers), writeLine(w), benchreport.Verdicts(w, vs))
		}, err
	})
	f.repeatFlag(c, 3)
	f.vmFlags(c)
	c.Flags().IntVar(&o.TouchMiB, "touch", 512, "memory that the guest touches at random, in MiB")
	c.Flags().BoolVar(&f.tls, "tls", false, "run pagewarp over mutual TLS; QEMU's own postcopy runs without in any case")
	c.Flags().StringVar(&o.Codec, "codec", "auto", "pagewarp's codec for precache: auto, none, s2 or zstd")
	c.Flags().IntVar(&link, "link", 0, "limit of the link in Mbit/s; 0 is none")
	return c
}

func writeLine(w io.Writer) error {
	_, err := fmt.Fprintln(w)
	return err
}
