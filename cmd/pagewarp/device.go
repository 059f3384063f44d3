package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/cmd/internal/units"
	"github.com/pagewarp/pagewarp/kmod"
	"github.com/pagewarp/pagewarp/relocate"
)

func newDevice(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "device", Short: "Memory objects of the pagewarp kernel module", Args: group, RunE: help,
		Long: `Memory objects of the pagewarp kernel module on this host. The daemon makes and
frees those of the machines that arrive; these commands are for a machine that is
to start on the device, and for what was left. They need root.`,
	}
	c.AddCommand(newDeviceList(a), newDeviceCreate(a),
		newDeviceDo(a, "destroy", "Remove an object and free its memory", "gone", "Remove an object. Its memory is freed with the last mapping of it; a process that\ntouches a missing page gets a SIGBUS.", (*kmod.Control).Destroy),
		newDeviceDo(a, "thaw", "Allow writes to a frozen object again", "thawed", "Allow writes to a frozen object again: the memory of a machine that left with\n--keep-source. The machine must not run at two hosts.", (*kmod.Control).Thaw))
	return c
}

// object is an object as the list shows it.
type object struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Bytes    uint64 `json:"bytes"`
	PID      int    `json:"pid,omitempty"` // a process that maps it
	Faults   uint64 `json:"faults"`
	PageSize int    `json:"page_size"` // bytes
}

func newDeviceList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the objects", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			c, err := kmod.Open()
			if err != nil {
				return err
			}
			defer c.Close()
			list, err := c.List()
			if err != nil {
				return err
			}
			objects := make([]object, 0, len(list))
			for _, s := range list {
				pid, err := relocate.ObjectMapper(s.Name)
				if err != nil {
					return err
				}
				objects = append(objects, object{s.Name, s.State.String(), s.Bytes, pid, s.Faults, s.PageSize})
			}
			return a.print(objects, func(w io.Writer) {
				if len(objects) == 0 {
					fmt.Fprintln(w, "no objects; `pagewarp device create NAME --size SIZE` makes one")
					return
				}
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "NAME\tSTATE\tSIZE\tPAGES OF\tFAULTS\tMAPPED BY")
				for _, o := range objects {
					by := "-"
					if o.PID != 0 {
						by = fmt.Sprintf("pid %d", o.PID)
					}
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\n", o.Name, o.State, units.FormatSize(o.Bytes), units.FormatSize(uint64(o.PageSize)), o.Faults, by)
				}
				t.Flush()
			})
		},
	}
}

func newDeviceCreate(a *app) *cobra.Command {
	var (
		size, page, mode string
		uid, gid         int
	)
	c := &cobra.Command{
		Use: "create NAME --size SIZE", Short: "Make memory for a machine to start on",
		Long: `Make an object of ordinary memory, which a QEMU maps as its RAM:

  -object memory-backend-file,id=mem,size=4G,mem-path=/dev/pagewarp/web1,share=on`,
		Example: "  pagewarp device create web1 --size 4G --uid 64055 --gid 64055",
		Args:    nameFirst(1),
		RunE: func(_ *cobra.Command, n []string) error {
			if size == "" {
				return usagef("--size is missing: the machine's memory, e.g. 4G")
			}
			bytes, err := units.ParseSize(size)
			if err != nil {
				return usagef("--size: %w", err)
			}
			pageBytes, err := units.ParseSize(page)
			if err != nil {
				return usagef("--page-size: %w", err)
			}
			perm, err := strconv.ParseUint(mode, 8, 32)
			if err != nil || perm > 0o777 {
				return usagef("--mode %s: permission bits are 0 to 0777", mode)
			}
			k, err := kmod.Open()
			if err != nil {
				return err
			}
			defer k.Close()
			path, err := k.Create(kmod.Config{Name: n[0], Bytes: uint64(bytes), PageSize: int(pageBytes), Mode: os.FileMode(perm), UID: uid, GID: gid, Plain: true})
			if err != nil {
				return err
			}
			return a.print(map[string]string{"path": path}, func(w io.Writer) { fmt.Fprintln(w, path) })
		},
	}
	c.Flags().StringVar(&size, "size", "", "`SIZE` of the memory, e.g. 4G")
	c.Flags().StringVar(&page, "page-size", "4K", "`SIZE` of the object's pages: 4K, or 2M where the kernel has huge pages of\nshared memory")
	c.Flags().IntVar(&uid, "uid", 0, "owner of the node")
	c.Flags().IntVar(&gid, "gid", 0, "group of the node")
	c.Flags().StringVar(&mode, "mode", "0600", "permissions of the node, octal")
	return c
}

func newDeviceDo(a *app, verb, short, done, long string, do func(*kmod.Control, string) error) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME", Short: short, Long: long, Args: args(cobra.ExactArgs(1)), ValidArgsFunction: objectNames,
		RunE: func(_ *cobra.Command, n []string) error {
			c, err := kmod.Open()
			if err != nil {
				return err
			}
			defer c.Close()
			if err := do(c, n[0]); err != nil {
				return err
			}
			return a.done(n[0], done, done)
		},
	}
}

// objectNames completes the name of an object.
func objectNames(_ *cobra.Command, have []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := kmod.Open()
	if err != nil || len(have) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer c.Close()
	list, _ := c.List() // a completion has no place for errors
	var names []string
	for _, s := range list {
		names = append(names, s.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
