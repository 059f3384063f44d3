package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/transport/rdma"
)

func newRDMA(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "rdma", Short: "RDMA devices of this host", Args: group, RunE: help,
		Long: `RDMA devices of this host, over which pages can travel (relocate --transport
rdma). The daemon must be one that was built with RDMA, pagewarpd-rdma.`,
	}
	c.AddCommand(newRDMAList(a))
	return c
}

func newRDMAList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List devices, ports, addresses, and whether they will do", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			ports, err := rdma.List()
			if err != nil {
				return err
			}
			if ports == nil {
				ports = []rdma.Port{}
			}
			return a.print(ports, func(w io.Writer) { listPorts(w, ports) })
		},
	}
}

func listPorts(w io.Writer, ports []rdma.Port) {
	if len(ports) == 0 {
		fmt.Fprintln(w, "no RDMA device: a NIC needs the module of its RDMA driver (mlx5_ib, irdma, …);\nsoft-RoCE is made by `modprobe rdma_rxe` and `rdma link add rxe0 type rxe netdev IF`")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "DEVICE\tPORT\tSTATE\tLINK\tRATE\tINTERFACE\tUSABLE")
	for _, p := range ports {
		usable, netdev := "yes", "-"
		if p.Problem != "" {
			usable = "no: " + p.Problem
		}
		if p.Netdev != "" {
			netdev = p.Netdev
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", p.Device, p.Number, p.State, p.LinkLayer, p.Rate, netdev, usable)
	}
	t.Flush()
	for _, p := range ports {
		for _, g := range p.GIDs {
			fmt.Fprintf(w, "  %s:%d  gid %d  %s  %s\n", p.Device, p.Number, g.Index, g.Address, g.Type)
		}
	}
}
