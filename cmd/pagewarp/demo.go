package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/bench/demo"
	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/pki"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate"
)

func init() { extra = append(extra, newDemo) }

func newDemo() *cobra.Command {
	var c demo.Config
	var ram int
	cmd := &cobra.Command{
		Use: "demo", Short: "Relocate a real virtual machine between two hosts on this machine",
		Long: `Relocate a real virtual machine under web load between two hosts on this
machine, each a network namespace with its own pagewarpd, and back; compare its
memory bit for bit. It needs root, QEMU and the test guest (make guest). The
exit code is 1 if one page differed or the guest saw one bad page.`,
		Args: args(cobra.NoArgs),
	}
	fl := cmd.Flags()
	fl.StringVar(&c.Out, "out", filepath.Join("build", "demo"), "`FOLDER` for report.json, timeline.svg, timeline.png and logs")
	fl.StringVar(&c.Accel, "accel", "auto", "accelerator of QEMU: auto, kvm or tcg")
	fl.IntVar(&ram, "ram", 1024, "the guest's memory in MiB")
	fl.IntVar(&c.WorkingSetMiB, "working-set", 384, "what its web server serves from, in MiB")
	fl.IntVar(&c.Workers, "clients", 4, "connections that request pages")
	fl.DurationVar(&c.Away, "away", 0, "keep the memory where the machine leaves, and have it return after this time with what has changed")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkAccel(c.Accel); err != nil {
			return err
		}
		if c.WorkingSetMiB < 1 {
			return usagef("--working-set %d: give at least 1 MiB", c.WorkingSetMiB)
		}
		// The guest's kernel and its programs need some 100 MiB.
		if ram < 256 || ram > 1<<20 || ram%2 != 0 || ram < c.WorkingSetMiB+96 {
			return usagef("--ram %d: give an even number of MiB from 256 to 1048576, and 96 more than the working set of %d", ram, c.WorkingSetMiB)
		}
		if c.Workers < 1 || c.Workers > 1000 {
			return usagef("--clients %d: give a number from 1 to 1000", c.Workers)
		}
		if c.Away < 0 || c.Away > time.Hour {
			return usagef("--away %v: at most an hour", c.Away)
		}
		tools, err := relocationTools()
		if err != nil {
			return err
		}
		if err := writableFolder("out", c.Out); err != nil {
			return err
		}
		c.Tools, c.RAM, c.CacheDir, c.Print = tools, uint64(ram)<<20, c.Out, cmd.OutOrStdout()
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		rep, err := demo.Run(ctx, c)
		if ctx.Err() != nil {
			says := "interrupted; hosts, machines and daemons were removed"
			if errors.Is(err, rig.ErrLeftBehind) {
				says = "interrupted; " + err.Error()
			}
			return &exitError{exitInterrupted, errors.New(says)}
		}
		if rep == nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout())
		if terr := rep.Text(cmd.OutOrStdout()); terr != nil {
			return terr
		}
		fmt.Fprintf(cmd.OutOrStdout(), "\n  %s\n  %s\n", filepath.Join(c.Out, "report.json"), filepath.Join(c.Out, "timeline.png"))
		return err
	}
	return cmd
}

// needRoot refuses what makes hosts of network namespaces to everybody else.
func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root: run this with sudo")
	}
	return nil
}

// relocationTools are this program's own parts for relocations on this machine.
func relocationTools() (demo.Tools, error) {
	if err := needRoot(); err != nil {
		return demo.Tools{}, err
	}
	daemon, err := findDaemon()
	if err != nil {
		return demo.Tools{}, err
	}
	return demo.Tools{
		Pagewarpd:    daemon,
		Dial:         func(socket string) demo.Client { return daemonClient{api.NewClient(socket, 30*time.Second)} },
		Certificates: issueCertificate,
	}, nil
}

// findDaemon looks for pagewarpd beside this program, then in PATH.
func findDaemon() (string, error) {
	if self, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(self), "pagewarpd")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath("pagewarpd")
	if err != nil {
		return "", fmt.Errorf("find the daemon: %w; build it beside this program (make build)", err)
	}
	return filepath.Abs(path)
}

// issueCertificate makes the certificate of a host, and the authority before
// the first.
func issueCertificate(dir, host string, addr netip.Addr) (ca, cert, key string, err error) {
	now := time.Now()
	if _, err := os.Stat(filepath.Join(dir, pki.CACert)); errors.Is(err, fs.ErrNotExist) {
		if _, err := pki.Init(dir, "pagewarp demo", now); err != nil {
			return "", "", "", err
		}
	}
	i, err := pki.Issue(dir, host, []string{addr.String()}, false, now)
	return i.CA, i.Cert, i.Key, err
}

// daemonClient is the API's client as package demo wants it.
type daemonClient struct{ *api.Client }

func (c daemonClient) Relocate(ctx context.Context, name, to string, o relocate.Options) (relocate.Status, error) {
	return c.Client.Relocate(ctx, name, api.RelocateRequest{To: to, Options: o})
}

func (c daemonClient) Statuses(ctx context.Context, vm string) ([]relocate.Status, error) {
	r, err := c.Status(ctx, vm)
	return r.Relocations, err
}

func (c daemonClient) Events(ctx context.Context) (es []relocate.Event, err error) {
	err = c.Client.Events(ctx, 0, false, func(e relocate.Event) error {
		es = append(es, e)
		return nil
	})
	return es, err
}
