package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/cmd/internal/units"
)

func newLimits(a *app) *cobra.Command {
	var host units.Rate
	c := &cobra.Command{
		Use: "limits", Short: "Show and change the caps of all relocations of this host together", Args: args(cobra.NoArgs),
		Long: `Show what caps all relocations of this host together, and change it at once, for
those that run as well. --host-bandwidth caps the background (precache) streams to
this host, and those from it; they share it evenly, what one leaves the others take,
and demand faults never wait.

` + rateHelp + `

A change lasts until the daemon ends or reads its configuration again (SIGHUP);
relocate.host_bandwidth there is for good.`,
		Example: "  pagewarp limits\n  pagewarp limits --host-bandwidth 2G\n  pagewarp limits --host-bandwidth none",
	}
	c.Flags().Var(&host, "host-bandwidth", "cap of all background streams, e.g. 2G (2 Gbit/s); \"none\" for no cap")
	c.Flags().Lookup("host-bandwidth").DefValue = ""
	c.RegisterFlagCompletionFunc("host-bandwidth", rates)
	c.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		var l api.Limits
		if cmd.Flags().Changed("host-bandwidth") {
			if err := config.CheckHostBandwidth(host); err != nil {
				return usagef("--host-bandwidth %w", err)
			}
			n := int64(host)
			l, err = a.daemon().SetLimits(cmd.Context(), api.LimitsRequest{HostBandwidth: &n})
		} else {
			l, err = a.daemon().Limits(cmd.Context())
		}
		if err != nil {
			return err
		}
		return a.print(l, func(w io.Writer) {
			fmt.Fprintf(w, "host bandwidth: %s", units.Rate(l.HostBandwidth))
			if l.Configured != l.HostBandwidth {
				fmt.Fprintf(w, " (configured: %s)", units.Rate(l.Configured))
			}
			fmt.Fprintln(w)
		})
	}
	return c
}
