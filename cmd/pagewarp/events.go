package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/relocate"
)

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func newEvents(a *app) *cobra.Command {
	var after uint64
	var follow bool
	c := &cobra.Command{
		Use: "events", Short: "Show the daemon's history", Args: args(cobra.NoArgs),
		Long: `Show what has happened at this host, oldest first. With --json one object a line.
The history begins anew, and its numbers with it, when the daemon is started; with
--follow the command waits half a minute for a daemon that is away, and goes on.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := a.untilInterrupt(cmd.Context())
			defer stop()
			enc := json.NewEncoder(a.out)
			show := func(e relocate.Event) error {
				if a.json {
					return enc.Encode(e)
				}
				_, err := fmt.Fprintf(a.out, "%6d  %s  %-10s %-8s %-11s  %s\n", e.Seq, e.Time.Local().Format("2006-01-02 15:04:05.000"), dash(e.VM), e.Kind, dash(string(e.Phase)), e.Text)
				return err
			}
			var err error
			if follow {
				err = a.followEvents(ctx, after, show)
			} else {
				err = a.daemon().Events(ctx, after, false, show)
			}
			if ctx.Err() != nil {
				return nil // Ctrl-C is how one leaves
			}
			return err
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new ones, until Ctrl-C")
	c.Flags().Uint64Var(&after, "after", 0, "only events with a number above `N`")
	return c
}

// followEvents shows events over the daemon's restarts, until ctx ends or show fails.
func (a *app) followEvents(ctx context.Context, after uint64, show func(relocate.Event) error) error {
	v, err := a.daemon().Version(ctx)
	if err != nil {
		return err
	}
	for {
		var failed error // of show
		err := a.daemon().Events(ctx, after, true, func(e relocate.Event) error {
			after, failed = e.Seq, show(e)
			return failed
		})
		var no *api.Error
		if failed != nil || errors.As(err, &no) && no.Code != api.CodeStopping {
			return err
		}
		// The daemon ended the stream: it stops, or has died, or this was too slow.
		now, err := a.awaitDaemon(ctx)
		if err != nil {
			return err
		}
		if !now.Started.Equal(v.Started) {
			fmt.Fprintf(a.errOut, "the daemon was started anew (pid %d); its events begin at 1 again\n", now.PID)
			v, after = now, 0
		}
	}
}

// awaitDaemon waits for an answer of the daemon, for patience.
func (a *app) awaitDaemon(ctx context.Context) (api.VersionReply, error) {
	end := time.Now().Add(patience)
	for said := false; ; said = true {
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return api.VersionReply{}, ctx.Err()
		}
		v, err := a.daemon().Version(ctx)
		if err == nil || time.Now().After(end) {
			return v, err
		}
		if !said {
			fmt.Fprintln(a.errOut, "the daemon does not answer; waiting for it")
		}
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
