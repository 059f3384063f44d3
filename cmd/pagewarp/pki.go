package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/cmd/internal/pki"
)

// madeAuthority and madeCertificate are what --json prints of what was made.
type madeAuthority struct {
	Name    string    `json:"name"`
	Dir     string    `json:"dir"`
	Expires time.Time `json:"expires"`
}

type madeCertificate struct {
	Name    string    `json:"name"`
	CA      string    `json:"ca"`
	Cert    string    `json:"cert"`
	Key     string    `json:"key"`
	Expires time.Time `json:"expires"`
}

func newPKI(a *app) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "pki", Short: "Make the certificates with which daemons trust each other", Args: group, RunE: help,
		Long: `Make the certificates with which daemons trust each other (mutual TLS). On one
machine: ` + "`pagewarp pki init`, then `pagewarp pki issue NAME`" + ` for each host. Copy
ca.crt, NAME.crt and NAME.key to the host; ca.key stays where it is.`,
		Example: "  pagewarp pki init\n  pagewarp pki issue hostA --san hostA.example.org --san 10.0.0.1",
	}
	c.PersistentFlags().StringVar(&dir, "dir", pki.DefaultDir, "`DIR` of the authority")

	var name string
	initCmd := &cobra.Command{
		Use: "init", Short: "Make the authority, for ten years", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			crt, err := pki.Init(dir, name, time.Now())
			if err != nil {
				return err
			}
			return a.print(madeAuthority{name, dir, crt.NotAfter}, func(w io.Writer) {
				fmt.Fprintf(w, "authority %q made in %s, valid until %s\nnext: pagewarp pki issue NAME --dir %s, for each host\n", name, dir, crt.NotAfter.Format(time.DateOnly), dir)
			})
		},
	}
	initCmd.Flags().StringVar(&name, "name", "pagewarp authority", "its `NAME` in certificates")

	var sans []string
	var force bool
	issue := &cobra.Command{
		Use: "issue NAME", Short: "Make a host's certificate, for 825 days", Args: args(cobra.ExactArgs(1)),
		Long: "Make a certificate for the host that others call NAME. --san adds further names\nand addresses: whatever stands before the port in `relocate --to` must be there.",
		RunE: func(_ *cobra.Command, n []string) error {
			i, err := pki.Issue(dir, n[0], sans, force, time.Now())
			if err != nil {
				return err
			}
			made := madeCertificate{n[0], i.CA, i.Cert, i.Key, i.Leaf.NotAfter}
			return a.print(made, func(w io.Writer) {
				fmt.Fprintf(w, `certificate of %s made, valid until %s
copy these to %s, and paste into its pagewarpd.toml (with the paths they have there):

[tls]
ca = %q
cert = %q
key = %q
`, n[0], i.Leaf.NotAfter.Format(time.DateOnly), n[0], i.CA, i.Cert, i.Key)
			})
		},
	}
	issue.Flags().StringArrayVar(&sans, "san", nil, "a further DNS `NAME` or address; may be repeated")
	issue.Flags().BoolVar(&force, "force", false, "replace the certificate and key that are there")

	show := &cobra.Command{
		Use: "show", Short: "List the certificates and when they end", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			es, err := pki.List(dir)
			if err != nil {
				return err
			}
			return a.print(es, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "NAME\tKIND\tEXPIRES\tDAYS\tNAMES\tFILE")
				for _, e := range es {
					kind, days := "host", int(time.Until(e.Expires).Hours()/24)
					if e.CA {
						kind = "authority"
					}
					note := ""
					if time.Until(e.Expires) < pki.ExpiryWarning {
						note = " renew!"
					}
					fmt.Fprintf(t, "%s\t%s\t%s\t%d%s\t%s\t%s\n", e.Name, kind, e.Expires.Format(time.DateOnly), days, note, dash(strings.Join(e.Names, ",")), e.Path)
				}
				t.Flush()
			})
		},
	}
	c.AddCommand(initCmd, issue, show)
	return c
}
