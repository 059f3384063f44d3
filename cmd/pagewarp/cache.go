package main

import (
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/cmd/internal/progress"
	"github.com/pagewarp/pagewarp/cmd/internal/units"
	"github.com/pagewarp/pagewarp/relocate"
)

func newCache(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "cache", Short: "Memory kept of machines that have left this host", Args: group, RunE: help,
		Long: `Memory kept of machines that have left this host, so that one that comes back
brings only what has changed. It is kept if cache.size is set in the daemon's
configuration; what was used longest ago goes first, and all of it gives way to
machines that need the memory.`,
	}
	c.AddCommand(newCacheList(a), newCacheDrop(a), newCachePath(a))
	return c
}

func newCacheList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List what is kept", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.daemon().Cache(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) {
				if r.Limit == 0 {
					fmt.Fprintln(w, "nothing is kept: set cache.size in the daemon's configuration")
					return
				}
				var sum int64
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				if len(r.Entries) > 0 {
					fmt.Fprintln(t, "NAME\tTAKES\tKEPT\tUSED\tSTATE")
				}
				now := time.Now()
				for _, e := range r.Entries {
					state := "good"
					if e.Problem != "" {
						state = e.Problem
					}
					sum += e.Bytes
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", e.VM, units.FormatSize(uint64(e.Bytes)), progress.Age(e.Kept, now), progress.Age(e.Used, now), state)
				}
				t.Flush()
				fmt.Fprintf(w, "%s of %s in %s\n", units.FormatSize(uint64(sum)), units.FormatSize(uint64(r.Limit)), r.Dir)
			})
		},
	}
}

func newCacheDrop(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "drop NAME", Short: "Free what is kept of a machine", Args: nameFirst(1), ValidArgsFunction: a.cached,
		RunE: func(cmd *cobra.Command, n []string) error {
			if err := a.daemon().CacheDrop(cmd.Context(), n[0]); err != nil {
				return err
			}
			return a.done(n[0], "dropped", "dropped from the cache")
		},
	}
}

func newCachePath(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "path [NAME]", Short: "Print where it is kept", ValidArgsFunction: a.cached,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, n []string) error {
			r, err := a.daemon().Cache(cmd.Context())
			if err != nil {
				return err
			}
			path := r.Dir
			if len(n) == 1 {
				path = ""
				for _, e := range r.Entries {
					if e.VM == n[0] {
						path = filepath.Clean(e.Path)
					}
				}
				if path == "" {
					return fmt.Errorf("%s: %w; `pagewarp cache list` shows what is kept", n[0], relocate.ErrNotCached)
				}
			}
			return a.print(map[string]string{"path": path}, func(w io.Writer) { fmt.Fprintln(w, path) })
		},
	}
}

// cached completes the names of what is kept.
func (a *app) cached(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	var out []string
	if r, err := a.daemon().Cache(cmd.Context()); err == nil && len(given) == 0 {
		for _, e := range r.Entries {
			out = append(out, e.VM+"\t"+units.FormatSize(uint64(e.Bytes)))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
