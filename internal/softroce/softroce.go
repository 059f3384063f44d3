// Package softroce makes the RDMA device of a test VM: soft-RoCE (rdma_rxe) on a
// dummy interface, which serves both ends. It is for VMs of package kvmrig, whose
// plan loads the modules.
package softroce

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The device, its interface and that one's address.
const (
	Device = "rxe0"
	Netdev = "dummy0"
	IP     = "10.77.0.1"
)

// mtu makes room for the largest path MTU of RDMA, 4096 bytes, with its headers.
const mtu = 4500

// Make makes the device, unless it is there.
func Make() error {
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: Netdev, MTU: mtu}}
	addr, err := netlink.ParseAddr(IP + "/24")
	if err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"add " + Netdev, func() error { return netlink.LinkAdd(link) }},
		{"address of " + Netdev, func() error { return netlink.AddrAdd(link, addr) }},
		{"bring up " + Netdev, func() error { return netlink.LinkSetUp(link) }},
		{"add " + Device, func() error { return netlink.RdmaLinkAdd(Device, "rxe", Netdev) }},
	} {
		if err := step.do(); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("soft-RoCE: %s: %w", step.what, err)
		}
	}
	return nil
}

// Objects counts the verbs objects of the device by kind, whoever has made them, as
// `rdma resource` does.
func Objects() (map[string]uint64, error) {
	all, err := netlink.RdmaResourceList()
	if err != nil {
		return nil, fmt.Errorf("verbs objects: %w", err)
	}
	for _, r := range all {
		if r.Name == Device {
			return r.RdmaResourceSummaryEntries, nil
		}
	}
	return nil, fmt.Errorf("verbs objects: no device %s", Device)
}
