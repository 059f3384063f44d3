package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

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
		Long: "Show what has happened at this host, oldest first. With --json one object a line.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := a.untilInterrupt(cmd.Context())
			defer stop()
			enc := json.NewEncoder(a.out)
			show := func(e relocate.Event) error {
				after = e.Seq
				if a.json {
					return enc.Encode(e)
				}
				_, err := fmt.Fprintf(a.out, "%6d  %s  %-10s %-8s %-11s  %s\n", e.Seq, e.Time.Local().Format("2006-01-02 15:04:05.000"), dash(e.VM), e.Kind, dash(string(e.Phase)), e.Text)
				return err
			}
			for {
				err := a.daemon().Events(ctx, after, follow, show)
				switch {
				case ctx.Err() != nil:
					return nil // Ctrl-C is how one leaves
				case !follow || !errors.Is(err, io.EOF):
					return err
				}
				// The daemon ended the stream: it stops, or this was too slow.
				select {
				case <-time.After(time.Second):
				case <-ctx.Done():
					return nil
				}
			}
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new ones, until Ctrl-C")
	c.Flags().Uint64Var(&after, "after", 0, "only events with a number above `N`")
	return c
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
