package main

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/cmd/internal/daemon"
	"github.com/pagewarp/pagewarp/cmd/internal/pki"
	"github.com/pagewarp/pagewarp/cmd/internal/units"
	"github.com/pagewarp/pagewarp/cmd/internal/version"
)

// flags override the file.
type flags struct {
	config, stateDir, socket, level, format, metrics, source string
	rdma, rdmaDevice                                         string
	rdmaBudget                                               units.Size
	listen                                                   []string
	insecure                                                 bool
}

func newRoot(errOut io.Writer, signals <-chan os.Signal) *cobra.Command {
	var f flags
	root := &cobra.Command{
		Use:   "pagewarpd",
		Short: "The per-host daemon that relocates virtual machines",
		Long: `pagewarpd keeps the virtual machines of this host, sends them to other daemons
and receives theirs. Source and destination are roles, not programs: every host
runs the same daemon. pagewarp is the operator's command.

Without a configuration file it listens on loopback and unix sockets only.
SIGTERM stops it: what is before its switch-over rolls back, what is past it is
taken up by the next daemon. SIGHUP reads templates, certificates, defaults and
the log level again.

Exit codes: 0 stopped by a signal, 1 failed, 2 usage.`,
		Example:       "  pagewarpd --config /etc/pagewarp/pagewarpd.toml\n  pagewarpd config --example > /etc/pagewarp/pagewarpd.toml",
		Args:          noArgs,
		SilenceErrors: true, SilenceUsage: true,
		Version: version.Get().String(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd, f, errOut, signals)
		},
	}
	p := root.PersistentFlags()
	p.StringVar(&f.config, "config", "", "configuration `FILE` (TOML)")
	p.StringVar(&f.stateDir, "state-dir", "", "`DIR` of journals, lock and sockets (default "+config.DefaultStateDir+")")
	p.StringVar(&f.socket, "socket", "", "`PATH` of the API's unix socket (default "+config.SocketName+" in the state directory)")
	p.StringArrayVar(&f.listen, "listen", nil, "`ADDRESS` for peers, host:port or unix:/path; may be repeated")
	p.BoolVar(&f.insecure, "insecure", false, "talk to other hosts without TLS: guest memory in clear text, from and to anybody")
	p.StringVar(&f.level, "log-level", "", "debug, info, warn or error (default info)")
	p.StringVar(&f.format, "log-format", "", "text, json or auto (default auto)")
	p.StringVar(&f.metrics, "metrics-listen", "", "`HOST:PORT` for Prometheus, besides the API socket")
	p.StringVar(&f.source, "fault-source", "", "how faults are caught: auto, device (the kernel module) or userfaultfd (default auto)")
	p.StringVar(&f.rdma, "rdma", "", "pages by RDMA: off, ask (where a relocation asks for it) or auto (default ask)")
	p.StringVar(&f.rdmaDevice, "rdma-device", "", "`DEVICE`[:PORT] or interface for RDMA (default: what is behind the peers' address)")
	p.Var(&f.rdmaBudget, "rdma-budget", "most memory that a relocation registers for RDMA at each end, e.g. 8G (default: no bound)")
	addProfileFlags(root.Flags())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w; see `%s --help`", err, cmd.CommandPath())
	})
	root.AddCommand(newConfig(&f), newCheck(&f))
	root.CompletionOptions.DisableDefaultCmd = true
	return root
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unknown command or argument %q; see `%s --help`", args[0], cmd.CommandPath())
	}
	return nil
}

// load reads the file and lays the flags over it.
func (f flags) load(cmd *cobra.Command) (config.Config, error) {
	c := config.Default()
	if f.config != "" {
		var err error
		if c, err = config.Load(f.config); err != nil {
			return c, err
		}
	}
	set := func(name string, dst *string, v string) {
		if cmd.Flags().Changed(name) {
			*dst = v
		}
	}
	set("state-dir", &c.StateDir, f.stateDir)
	set("socket", &c.API.Socket, f.socket)
	set("log-level", &c.Log.Level, f.level)
	set("log-format", &c.Log.Format, f.format)
	set("fault-source", &c.Engine.FaultSource, f.source)
	set("rdma", &c.RDMA.Policy, f.rdma)
	set("rdma-device", &c.RDMA.Device, f.rdmaDevice)
	set("metrics-listen", &c.Metrics.Listen, f.metrics)
	if cmd.Flags().Changed("rdma-budget") {
		c.RDMA.Budget = f.rdmaBudget
	}
	if cmd.Flags().Changed("listen") {
		c.Listen = f.listen
	}
	if cmd.Flags().Changed("insecure") {
		c.Insecure = f.insecure
	}
	return c, c.Validate()
}

func serve(cmd *cobra.Command, f flags, errOut io.Writer, signals <-chan os.Signal) error {
	c, err := f.load(cmd)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	log := daemon.NewLog(errOut, c.Log.Format, level)
	parallelism(c.Engine.GOMAXPROCS)
	stop, err := startProfile(cmd.Flags(), log)
	if err != nil {
		return err
	}
	defer stop()
	return daemon.Run(cmd.Context(), daemon.Options{
		Config: c, Reload: func() (config.Config, error) { return f.load(cmd) },
		Log: log, Level: level, NewEngine: newEngine, Signals: signals, Notify: notify,
	})
}

func newConfig(f *flags) *cobra.Command {
	var example bool
	c := &cobra.Command{
		Use:   "config",
		Short: "Print the configuration in force, or a commented example",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if example {
				_, err := io.WriteString(cmd.OutOrStdout(), config.Example)
				return err
			}
			c, err := f.load(cmd)
			if err != nil {
				return err
			}
			text, err := c.Encode()
			if err == nil {
				_, err = io.WriteString(cmd.OutOrStdout(), text)
			}
			return err
		},
	}
	c.Flags().BoolVar(&example, "example", false, "every key with its default and its explanation")
	return c
}

func newCheck(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and the certificates it names, and start nothing",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.load(cmd)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			security := "none: loopback and unix sockets only"
			if c.Insecure {
				security = "NONE, by insecure: clear text to and from anybody"
			}
			if c.TLS.Enabled() {
				s, err := pki.Open(pki.Files{CA: c.TLS.CA, Cert: c.TLS.Cert, Key: c.TLS.Key, Peers: c.TLS.Peers}, nil)
				if err != nil {
					return err
				}
				security = fmt.Sprintf("mutual TLS as %s until %s", s.Leaf().Subject.CommonName, s.Leaf().NotAfter.Format(time.DateOnly))
				if w := s.Expiring(time.Now()); w != "" {
					fmt.Fprintln(cmd.ErrOrStderr(), "pagewarpd: warning:", w)
				}
			}
			for _, name := range slices.Sorted(maps.Keys(c.Templates)) {
				if b := c.Templates[name].Binary; b != "" {
					if _, err := exec.LookPath(b); err != nil {
						fmt.Fprintf(cmd.ErrOrStderr(), "pagewarpd: warning: templates.%q.binary cannot be run: %v\n", name, err)
					}
				}
			}
			fmt.Fprintf(out, "configuration is good\n  peers     %v\n  security  %s\n  socket    %s\n", c.Listeners(), security, c.Socket())
			return nil
		},
	}
}
