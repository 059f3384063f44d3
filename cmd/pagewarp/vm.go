package main

import (
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/cmd/internal/units"
	"github.com/pagewarp/pagewarp/relocate"
)

// nameFirst accepts a machine's name as the first of n arguments.
func nameFirst(n int) cobra.PositionalArgs {
	return args(func(cmd *cobra.Command, a []string) error {
		if err := cobra.ExactArgs(n)(cmd, a); err != nil {
			return err
		}
		if !config.ValidName(a[0]) {
			return fmt.Errorf("machine name %q: use 1 to 64 letters, digits, '.', '_' and '-'", a[0])
		}
		return nil
	})
}

func newVM(a *app) *cobra.Command {
	vm := &cobra.Command{Use: "vm", Short: "Adopt, list and forget the machines of this host", Args: group, RunE: help}
	vm.AddCommand(newVMAdd(a), newVMList(a), newVMRemove(a))
	return vm
}

func newVMAdd(a *app) *cobra.Command {
	var qmp string
	c := &cobra.Command{
		Use: "add NAME --qmp PATH", Short: "Adopt a QEMU that already runs",
		Long: `Adopt a QEMU that already runs, through its QMP socket. Nothing changes for the
machine. It must have been started with shared file-backed memory:

  -object memory-backend-file,id=mem,size=4G,mem-path=/dev/shm/web1,share=on
  -machine memory-backend=mem -qmp unix:/run/web1.qmp,server=on,wait=off`,
		Example: "  pagewarp vm add web1 --qmp /run/web1.qmp",
		Args:    nameFirst(1), ValidArgsFunction: cobra.NoFileCompletions, // its name is the operator's choice
		RunE: func(cmd *cobra.Command, n []string) error {
			if qmp == "" {
				return usagef("--qmp is missing: the path of the QMP socket of %s", n[0])
			}
			// The daemon has another working directory.
			path, err := filepath.Abs(qmp)
			if err != nil {
				return usagef("--qmp %q: %w", qmp, err)
			}
			m, err := a.daemon().Add(cmd.Context(), n[0], path)
			if err != nil {
				return err
			}
			return a.print(m, func(w io.Writer) {
				fmt.Fprintf(w, "%s adopted: QEMU %s, %s, %s, %d vCPU, %s\n", m.Name, m.Version, m.Machine, units.FormatSize(uint64(m.RAMBytes)), m.VCPUs, m.Status)
				if m.Problem != "" {
					fmt.Fprintf(w, "  WARNING: it cannot be relocated as it is: %s\n", m.Problem)
				}
			})
		},
	}
	c.Flags().StringVar(&qmp, "qmp", "", "`PATH` of the machine's QMP socket")
	return c
}

func newVMList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the adopted machines", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ms, err := a.daemon().Machines(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(ms, func(w io.Writer) { machineTable(w, ms) })
		},
	}
}

func machineTable(w io.Writer, ms []relocate.Machine) {
	if len(ms) == 0 {
		fmt.Fprintln(w, "no machines; `pagewarp vm add NAME --qmp PATH` adopts one")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATUS\tMEMORY\tVCPUS\tQEMU\tMACHINE\tPID\tRELOCATION")
	for _, m := range ms {
		phase := string(m.Phase)
		if phase == "" {
			phase = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%d\t%s\n", m.Name, m.Status, units.FormatSize(uint64(m.RAMBytes)), m.VCPUs, m.Version, m.Machine, m.PID, phase)
	}
	t.Flush()
	for _, m := range ms {
		if m.Problem != "" {
			fmt.Fprintf(w, "%s cannot be relocated as it is: %s\n", m.Name, m.Problem)
		}
	}
}

func newVMRemove(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Short: "Forget a machine, which runs on", Args: nameFirst(1), ValidArgsFunction: a.names,
		RunE: func(cmd *cobra.Command, n []string) error {
			if err := a.daemon().Remove(cmd.Context(), n[0]); err != nil {
				return err
			}
			return a.done(n[0], "forgotten", "forgotten; the machine itself was left alone")
		},
	}
}

func newCancel(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "cancel NAME", Short: "Roll a relocation back, before its switch-over", Args: nameFirst(1), ValidArgsFunction: a.names,
		Long: "Roll a relocation back and wait for it: the machine runs on at the source. Past\nthe switch-over this is refused, because the guest runs at the destination.",
		RunE: func(cmd *cobra.Command, n []string) error {
			if err := a.daemon().Cancel(cmd.Context(), n[0]); err != nil {
				return err
			}
			return a.done(n[0], "rolled-back", "rolled back; it runs on at the source")
		},
	}
}

func newBandwidth(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "bandwidth NAME RATE", Short: "Change the cap of a running relocation's background stream",
		Long: `Change the cap of the background (precache) stream of a running relocation, at
its source or its destination; demand faults are never capped. In the drain of one
with --on-demand-only it begins such a stream.

` + rateHelp,
		Example: "  pagewarp bandwidth web1 500M\n  pagewarp bandwidth web1 none",
		Args:    nameFirst(2), ValidArgsFunction: func(cmd *cobra.Command, given []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(given) == 1 {
				return rates(cmd, nil, typed)
			}
			return a.names(cmd, given, typed)
		},
		RunE: func(cmd *cobra.Command, n []string) error {
			r, err := units.ParseRate(n[1])
			if err != nil {
				return usagef("%w", err)
			}
			if err := a.daemon().SetBandwidth(cmd.Context(), n[0], int64(r)); err != nil {
				return err
			}
			return a.print(bandwidthDone{n[0], int64(r)}, func(w io.Writer) { fmt.Fprintf(w, "%s: %s\n", n[0], r) })
		},
	}
}

// rates completes a rate.
var rates = cobra.FixedCompletions([]string{"none", "500M", "1G", "2G", "5G", "10G"}, cobra.ShellCompDirectiveNoFileComp)

// bandwidthDone is what `bandwidth --json` prints.
type bandwidthDone struct {
	Name           string `json:"name"`
	BytesPerSecond int64  `json:"bytes_per_second"` // 0: no cap
}

const rateHelp = `Rates are bits per second with SI prefixes, as network people write them: 2G is
2 Gbit/s, 500M is 500 Mbit/s. Bytes need the B: 250MB/s. "none" lifts the cap.`
