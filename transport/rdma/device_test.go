package rdma

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// Events of a device are those of all its ports: one that goes down, or comes up, is of
// concern to those alone who use it. A device that is broken is not mended by a port.
func TestEventsOfPorts(t *testing.T) {
	d := &Device{port: Port{Device: "mlx4_0", Number: 2}, watch: make(map[int]func(error))}
	told := 0
	if _, err := d.onFailure(func(error) { told++ }); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		text   string
		port   int
		told   int
		failed bool
	}{
		{portError, 1, 0, false}, {"port active", 1, 0, false}, {"QP last WQE reached", 0, 0, false},
		{portError, 2, 1, true}, {"port active", 1, 1, true}, {"port active", 2, 1, false},
		{catastrophe, 0, 2, true}, {"port active", 2, 2, true}, {portError, 2, 2, true}, {"port active", 2, 2, true},
	} {
		d.heard(x.text, x.port)
		_, err := d.onFailure(func(error) {})
		if told != x.told || (err != nil) != x.failed {
			t.Errorf("%q of port %d: told %d times of a failure, out of use: %v", x.text, x.port, told, err)
		}
	}
}

// The interface that is named may be any of a port's, whose GIDs are then its own, and one
// of InfiniBand, which no GID table names.
func TestChooseInterface(t *testing.T) {
	gid := func(i int, addr, netdev string) GID {
		return GID{Index: i, Address: netip.MustParseAddr(addr), Type: "RoCE v2", Netdev: netdev}
	}
	ports := []Port{
		{Device: "mlx5_0", Number: 1, State: "ACTIVE", Netdev: "eth4", GIDs: []GID{gid(0, "fe80::1", "eth4"), gid(3, "::ffff:10.77.0.1", "eth4"), gid(5, "fe80::1", "eth4.100"), gid(7, "::ffff:10.78.0.1", "eth4.100")}},
		{Device: "mlx5_1", Number: 1, State: "ACTIVE", Netdev: "eth6", GIDs: []GID{gid(3, "::ffff:10.79.0.1", "eth6"), gid(5, "fe80::1", "eth6.7")}},
		{Device: "mlx4_1", Number: 1, State: "ACTIVE", GIDs: []GID{{Index: 0, Address: netip.MustParseAddr("fe80::2")}}},
	}
	behind := func(netdev string) (string, error) {
		if netdev == "ib0" {
			return "mlx4_1", nil
		}
		return "", errors.New("none")
	}
	for _, c := range []struct {
		want, device string
		gid          int
	}{{"eth4", "mlx5_0", 3}, {"eth4.100", "mlx5_0", 7}, {"eth4.100:1", "mlx5_0", 7}, {"mlx5_0", "mlx5_0", 3}, {"eth6.7", "mlx5_1", 5}, {"ib0", "mlx4_1", 0}, {"mlx4_1", "mlx4_1", 0}, {"eth5", "", 0}, {"eth4.100:2", "", 0}} {
		// The peers' address is another network's.
		p, g, err := choose(ports, c.want, "", netip.MustParseAddr("192.0.2.1"), behind)
		if p.Device != c.device || g.Index != c.gid || (err != nil) != (c.device == "") || err != nil && !errors.Is(err, ErrNoDevice) {
			t.Errorf("%s: %s, GID %d, %v", c.want, p.Device, g.Index, err)
		}
	}
}

// A device that is taken away while the list is made is not in it; the others are.
func TestListWithoutPorts(t *testing.T) {
	root := sysfsTree(t, "4: ACTIVE", map[string][3]string{"0": {"0000:0000:0000:0000:0000:ffff:0a4d:0001", "RoCE v2", "eth4"}})
	if err := os.Mkdir(filepath.Join(root, "mlx4_0"), 0o755); err != nil {
		t.Fatal(err)
	}
	if ports, err := list(root); err != nil || len(ports) != 1 || ports[0].Device != "mlx5_0" {
		t.Errorf("%+v, %v", ports, err)
	}
}
