package rdma

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/Mellanox/rdmamap"
	"golang.org/x/sys/unix"
)

// GID is one address of a port.
type GID struct {
	Index   int        `json:"index"`
	Address netip.Addr `json:"gid"`
	Type    string     `json:"type"`             // "IB/RoCE v1", "RoCE v2"
	Netdev  string     `json:"netdev,omitempty"` // RoCE only
}

// Port is one port of an RDMA device of this host.
type Port struct {
	Device    string `json:"device"`
	Number    int    `json:"port"`
	State     string `json:"state"`      // "ACTIVE", "DOWN", …
	LinkLayer string `json:"link_layer"` // "Ethernet", "InfiniBand"
	Rate      string `json:"rate"`       // as the kernel says it
	Netdev    string `json:"netdev,omitempty"`
	GIDs      []GID  `json:"gids"`
	// Problem says why the port will not do; empty if it will.
	Problem string `json:"problem,omitempty"`
}

// sysfs is where the kernel lists RDMA devices; tests have their own.
const sysfs = "/sys/class/infiniband"

// ErrNoDevice says that this host has no RDMA device that fits.
var ErrNoDevice = errors.New("no RDMA device")

// List returns the ports of all RDMA devices of this host, in order of name. It
// needs no verbs.
func List() ([]Port, error) { return list(sysfs) }

func list(root string) ([]Port, error) {
	devices, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // ib_core is not loaded
	}
	if err != nil {
		return nil, fmt.Errorf("list RDMA devices: %w", err)
	}
	var out []Port
	for _, d := range devices {
		ports, err := os.ReadDir(filepath.Join(root, d.Name(), "ports"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has just been removed
		}
		if err != nil {
			return nil, fmt.Errorf("list the ports of RDMA device %s: %w", d.Name(), err)
		}
		for _, p := range ports {
			n, err := strconv.Atoi(p.Name())
			if err != nil {
				continue
			}
			out = append(out, readPort(filepath.Join(root, d.Name(), "ports", p.Name()), d.Name(), n))
		}
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Device != out[j].Device {
			return out[i].Device < out[j].Device
		}
		return out[i].Number < out[j].Number
	})
	return out, nil
}

// word reads a file of sysfs; what cannot be read is empty.
func word(path ...string) string {
	w, _ := readWord(path...)
	return w
}

// readWord reads the one line of a file of sysfs. An os.File would be put into Go's
// poller for each, of thousands.
func readWord(path ...string) (string, error) {
	fd, err := unix.Open(filepath.Join(path...), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var b [256]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return "", err
	}
	return string(bytes.TrimSpace(b[:n])), nil
}

// emptyGIDs is how many empty places in a row end the look at a GID table. A table
// may have 1024 places, each a file, and the kernel fills the first empty one (find_gid
// of ib_core's cache.c), so that what is used stands together at the beginning.
const emptyGIDs = 64

// readGIDs reads the GID table of a port.
func readGIDs(dir string) (gids []GID) {
	for i, empty := 0, 0; empty < emptyGIDs; i++ {
		n := strconv.Itoa(i)
		text, err := readWord(dir, "gids", n)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		a, err := netip.ParseAddr(text)
		if err != nil || a.IsUnspecified() {
			empty++
			continue
		}
		empty = 0
		gids = append(gids, GID{Index: i, Address: a, Type: word(dir, "gid_attrs", "types", n), Netdev: word(dir, "gid_attrs", "ndevs", n)})
	}
	return gids
}

func readPort(dir, device string, number int) Port {
	p := Port{Device: device, Number: number, LinkLayer: word(dir, "link_layer"), Rate: word(dir, "rate")}
	_, p.State, _ = strings.Cut(word(dir, "state"), ": ")
	p.GIDs = readGIDs(dir)
	for _, g := range p.GIDs {
		if p.Netdev == "" {
			p.Netdev = g.Netdev
		}
	}
	switch {
	case p.State != "ACTIVE":
		p.Problem = fmt.Sprintf("the port is %s: is the link up?", p.State)
	case len(p.GIDs) == 0:
		p.Problem = "the port has no GID: give its network interface an address"
	}
	return p
}

// Choose finds the port and GID to use: the one named want ("device",
// "device:port" or a network interface), or, if want is empty, the one behind the
// interface that has the address local. RoCE v2 is preferred, with local's own
// GID where want leaves the choice.
func Choose(want string, local netip.Addr) (Port, GID, error) {
	ports, err := List()
	if err != nil {
		return Port{}, GID{}, err
	}
	if len(ports) == 0 {
		return Port{}, GID{}, fmt.Errorf("%w on this host: no driver has made one below %s (for a NIC, load its driver's _ib module, mlx5_ib for example; for soft-RoCE, modprobe rdma_rxe and 'rdma link add rxe0 type rxe netdev IF')", ErrNoDevice, sysfs)
	}
	netdev := ""
	if want == "" {
		if netdev, err = interfaceOf(local); err != nil {
			return Port{}, GID{}, err
		}
	}
	return choose(ports, want, netdev, local, rdmamap.GetRdmaDeviceForNetdevice)
}

// choose does the work of Choose on a list; deviceOf finds the device behind a
// network interface.
func choose(ports []Port, want, netdev string, local netip.Addr, deviceOf func(string) (string, error)) (Port, GID, error) {
	var none Port
	device, number := "", 0
	if want != "" {
		device = want
		if d, p, ok := strings.Cut(want, ":"); ok {
			n, err := strconv.Atoi(p)
			if err != nil || n < 1 {
				return none, GID{}, fmt.Errorf("RDMA device %q: the port must be a number from 1", want)
			}
			device, number = d, n
		}
	}
	if want != "" && !slices.ContainsFunc(ports, func(p Port) bool { return p.Device == device }) {
		device, netdev = "", device
	}
	matches := func(p *Port) bool {
		return (device == "" || p.Device == device) && (number == 0 || p.Number == number) && (netdev == "" || p.serves(netdev))
	}
	unknown := fmt.Errorf("%w is called %q, nor its network interface; 'pagewarp rdma list' shows those there are", ErrNoDevice, want)
	if netdev != "" {
		found := false
		for i := range ports {
			found = found || ports[i].serves(netdev)
		}
		if !found { // InfiniBand: the interface is not in the GID table
			name, err := deviceOf(netdev)
			switch {
			case err != nil && want != "":
				return none, GID{}, unknown
			case err != nil:
				return none, GID{}, fmt.Errorf("%w serves the interface %s, which has the address %s; 'pagewarp rdma list' shows those there are, --rdma-device chooses one", ErrNoDevice, netdev, local)
			}
			device, netdev = name, ""
		}
	}
	var problem string
	for i := range ports {
		p := &ports[i]
		if !matches(p) {
			continue
		}
		if p.Problem != "" {
			problem = fmt.Sprintf("%s port %d: %s", p.Device, p.Number, p.Problem)
			continue
		}
		return *p, p.gid(netdev, local), nil
	}
	if problem != "" {
		return none, GID{}, fmt.Errorf("%w that is usable: %s", ErrNoDevice, problem)
	}
	return none, GID{}, unknown
}

// serves says whether the port is that of a network interface.
func (p *Port) serves(netdev string) bool {
	for _, g := range p.GIDs {
		if g.Netdev == netdev {
			return true
		}
	}
	return p.Netdev == netdev
}

// gid chooses among a port's GIDs, of which there is one.
func (p *Port) gid(netdev string, local netip.Addr) GID {
	best, score := p.GIDs[0], -1
	for _, g := range p.GIDs {
		s := 0
		if g.Type == "RoCE v2" {
			s += 4 // routable, and what NICs do by default
		}
		if g.Address.Unmap() == local.Unmap() {
			s += 8
		}
		if g.Address.Is4In6() {
			s += 2
		}
		if netdev != "" && g.Netdev == netdev {
			s += 16 // another one's packets would go another way
		}
		if s > score {
			best, score = g, s
		}
	}
	return best
}

// interfaceOf names the network interface that has an address.
func interfaceOf(a netip.Addr) (string, error) {
	if !a.IsValid() {
		return "", errors.New("RDMA needs a device: the connection is no TCP connection, so name one by --rdma-device")
	}
	ifs, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("list network interfaces: %w", err)
	}
	for _, i := range ifs {
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, x := range addrs {
			if n, ok := x.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == a.Unmap() {
					return i.Name, nil
				}
			}
		}
	}
	return "", fmt.Errorf("no network interface has the address %s", a)
}
