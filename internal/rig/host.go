package rig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	bridgeName = "br0"
	uplinkName = "up0"
)

// Host is one host of a rig. Its fields are immutable.
type Host struct {
	// Name is what New was given.
	Name string
	// NS is the name of its network namespace, as ip-netns(8) knows it.
	NS string
	// Addr is its address, in a /24.
	Addr netip.Addr
	// Dir is the host's own folder on a tmpfs (mode 0700), for the memory of
	// its VMs and for sockets. Close removes it.
	Dir string

	rig        *Rig
	switchPort string
}

// make builds the host: namespace, folder, uplink, bridge, address.
func (h *Host) make() error {
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return err
	}
	if err := h.makeNamespace(); err != nil {
		return err
	}
	ns, err := netns.GetFromName(h.NS)
	if err != nil {
		return err
	}
	defer ns.Close()
	sw, err := h.rig.switchNS()
	if err != nil {
		return err
	}
	defer sw.Close()
	err = h.rig.withSwitch(func(nl *netlink.Handle) error {
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: h.switchPort},
			PeerName:  uplinkName, PeerNamespace: netlink.NsFd(ns),
		}
		if err := nl.LinkAdd(veth); err != nil {
			return fmt.Errorf("add the uplink: %w", err)
		}
		return enslave(nl, veth.Name)
	})
	if err != nil {
		return err
	}
	return h.withNetlink(func(nl *netlink.Handle) error {
		br, err := addBridge(nl)
		if err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: h.Addr.AsSlice(), Mask: net.CIDRMask(24, 32)}}
		if err := nl.AddrAdd(br, addr); err != nil {
			return fmt.Errorf("add address %s: %w", h.Addr, err)
		}
		return enslave(nl, uplinkName)
	})
}

// makeNamespace makes the named namespace with loopback up and IPv6 off, whose
// duplicate address detection would only add noise.
func (h *Host) makeNamespace() error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread is in the new namespace and ends here.
		runtime.LockOSThread()
		if err := shareNames(); err != nil {
			done <- err
			return
		}
		ns, err := netns.NewNamed(h.NS)
		if err != nil {
			done <- fmt.Errorf("make network namespace %s: %w", h.NS, err)
			return
		}
		defer ns.Close()
		err = os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
		if errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
			err = nil
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return err
	}
	return h.withNetlink(func(nl *netlink.Handle) error { return setUp(nl, "lo") })
}

// shareNames makes the folder of named namespaces a shared mount, as ip-netns(8)
// does when it adds its first. If it came later, it would mount the folder over
// itself, and hide what is mounted in it by then.
func shareNames() error {
	if err := os.MkdirAll(nsDir, 0o755); err != nil {
		return err
	}
	share := func() error { return unix.Mount("", nsDir, "", unix.MS_SHARED|unix.MS_REC, "") }
	err := share()
	if errors.Is(err, unix.EINVAL) { // no mount of its own yet
		if err = unix.Mount(nsDir, nsDir, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", nsDir, err)
	}
	return nil
}

// Do runs f on a thread inside the host's network namespace: sockets that f
// makes belong to the host for good. f must not start goroutines that do.
func (h *Host) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		ns, err := netns.GetFromName(h.NS)
		if err != nil {
			done <- fmt.Errorf("open network namespace %s: %w", h.NS, err)
			return
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", h.NS, err)
			return
		}
		err = f()
		if back := netns.Set(home); back != nil {
			// The thread stays locked, and so ends with this goroutine.
			done <- errors.Join(err, fmt.Errorf("leave network namespace %s: %w", h.NS, back))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// Dial connects from inside the host; addr must hold a literal IP address.
func (h *Host) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = h.Do(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen listens inside the host; addr must hold a literal IP address or none.
func (h *Host) Listen(ctx context.Context, network, addr string) (l net.Listener, err error) {
	err = h.Do(func() (err error) {
		var c net.ListenConfig
		l, err = c.Listen(ctx, network, addr)
		return err
	})
	return l, err
}

// Command returns a command that will run inside the host. nsenter replaces
// itself by the program, so the process id is the program's.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", h.enter(name, args)...)
}

func (h *Host) enter(name string, args []string) []string {
	return append([]string{"--net=" + filepath.Join(nsDir, h.NS), "--", name}, args...)
}

// AddTap adds a tap device, joined to the host's bridge, for a VM.
func (h *Host) AddTap(name string) error {
	return h.withNetlink(func(nl *netlink.Handle) error {
		// The device is made by an ioctl on /dev/net/tun, which goes by the
		// namespace of the calling thread and not by the netlink socket's.
		err := h.Do(func() error {
			return netlink.LinkAdd(&netlink.Tuntap{
				LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP,
				Flags: netlink.TUNTAP_ONE_QUEUE | netlink.TUNTAP_VNET_HDR,
			})
		})
		if err != nil {
			return fmt.Errorf("add tap %s on host %s: %w", name, h.Name, err)
		}
		return enslave(nl, name)
	})
}

// withNetlink runs f with a netlink handle into the host's namespace.
func (h *Host) withNetlink(f func(*netlink.Handle) error) error {
	ns, err := netns.GetFromName(h.NS)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", h.NS, err)
	}
	defer ns.Close()
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink into %s: %w", h.NS, err)
	}
	defer nl.Close()
	return f(nl)
}

func (r *Rig) withSwitch(f func(*netlink.Handle) error) error {
	return (&Host{NS: r.Ident + "-" + switchName}).withNetlink(f)
}

func addBridge(nl *netlink.Handle) (netlink.Link, error) {
	// No multicast snooping: it would hold back the announcements of a VM that
	// has moved until a querier was heard.
	off := false
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}, MulticastSnooping: &off}
	if err := nl.LinkAdd(br); err != nil {
		return nil, fmt.Errorf("add bridge: %w", err)
	}
	return br, setUp(nl, bridgeName)
}

func enslave(nl *netlink.Handle, name string) error {
	l, err := nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	br, err := nl.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find link %s: %w", bridgeName, err)
	}
	if err := nl.LinkSetMaster(l, br); err != nil {
		return fmt.Errorf("join %s to %s: %w", name, bridgeName, err)
	}
	return setUp(nl, name)
}

func setUp(nl *netlink.Handle, name string) error {
	l, err := nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}
