package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/cmd/internal/version"
	"github.com/pagewarp/pagewarp/internal/words"
)

const socketEnv = "PAGEWARP_SOCKET"

// extra are the commands of other files, entered by their init functions.
var extra []func() *cobra.Command

// app is what the commands share.
type app struct {
	out, errOut io.Writer
	signals     chan os.Signal // nil: the process's

	socket  string
	json    bool
	timeout time.Duration
	client  *api.Client // made on first use
	outcome bool        // the exit code says what has become of a machine, read or not
}

// daemon is the client of the host's daemon.
func (a *app) daemon() *api.Client {
	if a.client == nil {
		a.client = api.NewClient(a.socket, a.timeout)
	}
	return a.client
}

// print writes v as JSON with --json, else calls text.
func (a *app) print(v any, text func(io.Writer)) error {
	if !a.json {
		text(a.out)
		return nil
	}
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// done says what was done with what has a name.
func (a *app) done(name, word, text string) error {
	return a.print(doneReply{name, word}, func(w io.Writer) { fmt.Fprintln(w, name, text) })
}

// doneReply is what --json prints where there is nothing else to tell.
type doneReply struct {
	Name string `json:"name"`
	Done string `json:"done"` // "forgotten", "rolled-back", "dropped", "gone", "thawed"
}

const rootHelp = `pagewarp relocates running virtual machines between hosts that run pagewarpd.
The guest stops for some milliseconds, runs on at the destination, and its
memory follows.

Exit codes: 0 ok, 1 failed, 2 usage, 3 rolled back (the machine runs on at the
source), 4 machine lost, 5 daemon unreachable, 130 interrupted.`

const rootExample = `  pagewarp vm add web1 --qmp /run/web1.qmp
  pagewarp relocate web1 --to hostB:7070 --bandwidth 2G
  pagewarp status web1 --watch`

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use: "pagewarp", Short: "Relocate running virtual machines between hosts", Long: rootHelp, Example: rootExample,
		Args: group, RunE: help,
		SilenceErrors: true, SilenceUsage: true,
		SuggestionsMinimumDistance: 2,
		Version:                    version.Get().String(),
	}
	p := root.PersistentFlags()
	p.StringVar(&a.socket, "socket", cmp.Or(os.Getenv(socketEnv), config.DefaultSocket), "the daemon's socket `PATH`; $"+socketEnv+" sets it, too")
	p.BoolVar(&a.json, "json", false, "print JSON")
	p.DurationVar(&a.timeout, "timeout", 2*time.Minute, "how long the daemon may take for one answer")
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(newVM(a), newRelocate(a), newCancel(a), newBandwidth(a), newLimits(a), newStatus(a), newTop(a), newEvents(a),
		newCache(a), newDevice(a), newRDMA(a), newPKI(a), newDoctor(a), newVersion(a))
	for _, f := range extra {
		root.AddCommand(f())
	}
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		if c.Name() == "help" {
			show := c.Run
			c.Args, c.Run, c.RunE = cobra.ArbitraryArgs, nil, func(cmd *cobra.Command, words []string) error {
				if found, rest, err := root.Find(words); err != nil || len(rest) > 0 {
					return group(found, append(rest, words...))
				}
				show(cmd, words)
				return nil
			}
		}
	}
	root.SetOut(a.out) // the completion commands write where it points now
	root.InitDefaultCompletionCmd("completion")
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.Args, c.RunE, c.Run = group, help, nil
		}
	}
	return root
}

func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// group refuses what is not one of cmd's commands, with what it may have been.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	msg := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		return usagef("%s; did you mean %s?", msg, strings.Join(s, " or "))
	}
	return usagef("%s; see `%s --help`", msg, cmd.CommandPath())
}

// args wraps a cobra check of arguments so that it is a mistake of usage, and
// shows what was expected.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, a []string) error {
		if err := check(cmd, a); err != nil {
			return usagef("%w; usage: %s", err, cmd.UseLine())
		}
		return nil
	}
}

func flagError(cmd *cobra.Command, err error) error {
	if name, ok := strings.CutPrefix(err.Error(), "unknown flag: --"); ok {
		name, _, _ = strings.Cut(name, "=")
		if s := similarFlag(cmd, name); s != "" {
			return usagef("%w; did you mean --%s?", err, s)
		}
	}
	return usagef("%w; see `%s --help`", err, cmd.CommandPath())
}

// similarFlag returns the flag of cmd that name is closest to, at most two
// letters away, or one that begins with it.
func similarFlag(cmd *cobra.Command, name string) (best string) {
	least := 3
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		d := words.Distance(name, f.Name)
		if strings.HasPrefix(f.Name, name) {
			d = min(d, 2)
		}
		if d < least && !f.Hidden {
			best, least = f.Name, d
		}
	})
	return best
}

// names completes the names of adopted machines.
func (a *app) names(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(given) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ms, err := a.daemon().Machines(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, m := range ms {
		out = append(out, m.Name+"\t"+m.Status)
	}
	slices.Sort(out)
	return out, cobra.ShellCompDirectiveNoFileComp
}

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the versions of this command and of the daemon", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Client version.Info      `json:"client"`
				Daemon *api.VersionReply `json:"daemon,omitempty"`
			}{Client: version.Get()}
			d, err := a.daemon().Version(cmd.Context())
			if err == nil {
				v.Daemon = &d
			}
			return a.print(v, func(w io.Writer) {
				fmt.Fprintln(w, "pagewarp ", v.Client)
				if err != nil {
					fmt.Fprintln(w, "pagewarpd unreachable:", err)
					return
				}
				fmt.Fprintf(w, "pagewarpd %s, pid %d\n", d.Info, d.PID)
			})
		},
	}
}
