package softroce

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The two devices of a Pair, whose packets cross a link, and its ends.
const (
	PairSource      = "rxe1"
	PairDestination = "rxe2"

	pairSource, pairDestination = "cable1", "cable2"
)

// pairEnds are the ends of the link with their addresses.
var pairEnds = []struct{ device, netdev, ip, peer string }{
	{PairSource, pairSource, "10.78.0.1", "10.78.0.2"},
	{PairDestination, pairDestination, "10.78.0.2", "10.78.0.1"},
}

// Pair makes two devices at the ends of one link, of one namespace, since soft-RoCE of
// Linux 6.1 knows no other: a packet to the other end's address is sent over the link,
// where its route is looked up by the device, and is taken though it comes from an
// address of this host.
func Pair() error {
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: pairSource, MTU: mtu}, PeerName: pairDestination}
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("soft-RoCE: add %s: %w", pairSource, err)
	}
	var links [2]netlink.Link
	for i, e := range pairEnds {
		l, err := netlink.LinkByName(e.netdev)
		if err == nil {
			links[i], err = l, netlink.LinkSetMTU(l, mtu)
		}
		for name, value := range map[string]string{"accept_local": "1", "rp_filter": "0"} {
			if err == nil {
				err = os.WriteFile("/proc/sys/net/ipv4/conf/"+e.netdev+"/"+name, []byte(value), 0)
			}
		}
		var addr *netlink.Addr
		if err == nil {
			addr, err = netlink.ParseAddr(e.ip + "/24")
		}
		if err == nil {
			err = netlink.AddrAdd(l, addr)
		}
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return fmt.Errorf("soft-RoCE: bring up %s: %w", e.netdev, err)
		}
	}
	for i, e := range pairEnds {
		peer, err := netlink.ParseAddr(e.peer + "/24")
		if err != nil {
			return err
		}
		other := links[1-i].Attrs()
		// It would not answer a question from an address of its own host.
		err = netlink.NeighSet(&netlink.Neigh{LinkIndex: links[i].Attrs().Index, State: netlink.NUD_PERMANENT, IP: peer.IP, HardwareAddr: other.HardwareAddr})
		if err == nil {
			err = netlink.RdmaLinkAdd(e.device, "rxe", e.netdev)
		}
		if err != nil {
			return fmt.Errorf("soft-RoCE: add %s: %w", e.device, err)
		}
	}
	return nil
}

// Limit bounds what leaves the source's end of a Pair, and what is sent over the
// loopback interface, to a rate in bytes per second each; 0 lifts it.
func Limit(rate uint64) error {
	for _, name := range []string{pairSource, "lo"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("limit %s: %w", name, err)
		}
		attrs := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
		if rate == 0 {
			err = netlink.QdiscDel(&netlink.Tbf{QdiscAttrs: attrs})
		} else {
			// A packet of lo has up to 64 KiB. The queue holds what soft-RoCE and TCP keep under way.
			burst := max(uint64(128<<10), rate/100)
			err = netlink.QdiscReplace(&netlink.Tbf{QdiscAttrs: attrs, Rate: rate, Limit: 4 << 20, Buffer: uint32(netlink.Xmittime(rate, uint32(burst)))})
		}
		if err != nil && !(rate == 0 && err == unix.ENOENT) {
			return fmt.Errorf("limit %s to %d bytes/s: %w", name, rate, err)
		}
	}
	return nil
}
