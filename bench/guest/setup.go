package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const moduleDir = "/lib/modules"

func mountAll() error {
	for _, m := range []struct{ kind, path string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"},
	} {
		if err := os.MkdirAll(m.path, 0o755); err != nil {
			return err
		}
		err := unix.Mount(m.kind, m.path, m.kind, 0, "")
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.path, err)
		}
	}
	return nil
}

// loadModules loads what the image builder put into moduleDir/list, one path
// a line, dependencies first.
func loadModules() error {
	list, err := os.ReadFile(filepath.Join(moduleDir, "list"))
	if err != nil {
		return err
	}
	for name := range strings.Lines(string(list)) {
		name = strings.TrimSpace(name)
		if name == "" {
			continue
		}
		if err := loadModule(filepath.Join(moduleDir, name)); err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) { // built in, or loaded already
		return nil
	}
	return err
}

func setUpNetwork(ip netip.Prefix, gateway netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	eth, err := waitForLink("eth0", 10*time.Second)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.Addr().AsSlice(), Mask: net.CIDRMask(ip.Bits(), ip.Addr().BitLen())}}
	if err := netlink.AddrAdd(eth, addr); err != nil {
		return fmt.Errorf("give eth0 the address %s: %w", ip, err)
	}
	if err := netlink.LinkSetUp(eth); err != nil {
		return fmt.Errorf("bring eth0 up: %w", err)
	}
	if !gateway.IsValid() {
		return nil
	}
	route := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gateway.AsSlice()}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("route by %s: %w", gateway, err)
	}
	return nil
}

// waitForLink waits for a driver to register name. Probing goes on after
// finit_module has returned, so the link may come a moment later.
func waitForLink(name string, limit time.Duration) (netlink.Link, error) {
	updates := make(chan netlink.LinkUpdate, 16)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return nil, fmt.Errorf("subscribe to links: %w", err)
	}
	if l, err := netlink.LinkByName(name); err == nil {
		return l, nil
	}
	timeout := time.After(limit)
	for {
		select {
		case u := <-updates:
			if u.Link != nil && u.Attrs().Name == name {
				return u.Link, nil
			}
		case <-timeout:
			return nil, fmt.Errorf("no link %s after %s: start QEMU with a virtio-net-pci device", name, limit)
		}
	}
}
