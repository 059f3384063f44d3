package rdma

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/transport"
	"pgregory.net/rapid"
)

func TestEndpoint(t *testing.T) {
	e := endpoint{qpn: 17, psn: 1<<24 - 1, lid: 3, mtu: 5, link: 2, reads: 16, gid: [16]byte{1, 15: 9}, chunk: chunkBytes}
	b := e.append(nil)
	got, err := parseEndpoint(b, true, false)
	if err != nil || got != e {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseEndpoint(b, false, false); !errors.Is(err, transport.ErrMalformed) {
		t.Errorf("a chunk size in CONNECT gave %v", err)
	}
	for _, at := range []int{3, 7, 10, 11, 12, 13, 15, 32, 36, 63} {
		c := slices.Clone(b)
		c[at] ^= 0x15
		if at == 12 {
			c[at] = 0
		}
		if _, err := parseEndpoint(c, true, false); !errors.Is(err, transport.ErrMalformed) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
}

// What a table says of a range must cover it, in order, and agree with the windows.
func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.Uint64Range(1, 2000).Draw(t, "pages")
		reg := transport.Region{ID: 4, Pages: pages, PageSize: 4096}
		tab := newTable([]transport.Region{reg})
		tab.cut(minChunkBytes)        // 256 pages
		want := make([]uint64, pages) // the address of each page, 0 for a hole
		r := tab.regions[4]
		for first := uint64(0); first < pages; {
			chunks := rapid.Uint64Range(1, 3).Draw(t, "chunks")
			end := min(first+chunks*256, pages)
			var body []byte
			for p := first; p < end; {
				p += rapid.Uint64Range(0, 90).Draw(t, "gap")
				n := rapid.Uint64Range(1, 90).Draw(t, "len")
				if p+n > end {
					break
				}
				w := window{first: p, count: uint32(n), rkey: 7, addr: 1<<40 + rapid.Uint64Range(0, 1<<30).Draw(t, "addr")}
				body = appendWindow(body, w)
				for i := range n {
					want[p+i] = w.addr + i*4096
				}
				p += n
			}
			if err := tab.mapped(&transport.Header{Region: 4, First: first, Count: uint32(end - first)}, body); err != nil {
				t.Fatal(err)
			}
			first = end
		}
		first := rapid.Uint64Range(0, pages-1).Draw(t, "first")
		rng := transport.Range{Region: 4, First: first, Count: uint32(rapid.Uint64Range(1, pages-first).Draw(t, "count"))}
		pieces, _, ok := r.split(rng, nil)
		if !ok {
			t.Fatal("not mapped")
		}
		at := first
		for _, p := range pieces {
			if p.first != at || p.count == 0 {
				t.Fatalf("piece %+v where page %d is due", p, at)
			}
			for i := range uint64(p.count) {
				addr := p.addr + i*4096
				if p.zero {
					addr = 0
				}
				if want[at+i] != addr {
					t.Fatalf("page %d at %#x, want %#x", at+i, addr, want[at+i])
				}
			}
			at += uint64(p.count)
		}
		if at != first+uint64(rng.Count) {
			t.Fatalf("pieces end at %d", at)
		}
		n := r.hole(first, 1<<30)
		for i := range n {
			if want[first+i] != 0 {
				t.Fatalf("page %d is no hole", first+i)
			}
		}
		if first+n < pages && want[first+n] == 0 {
			t.Fatalf("the hole at %d has more than %d pages", first, n)
		}
	})
}

func TestMappedLies(t *testing.T) {
	tab := newTable([]transport.Region{{ID: 1, Pages: 600, PageSize: 4096}})
	h := func(first uint64, count uint32) *transport.Header {
		return &transport.Header{Region: 1, First: first, Count: count}
	}
	if err := tab.mapped(h(0, 256), nil); !errors.Is(err, transport.ErrMalformed) {
		t.Errorf("MAPPED before ACCEPT: %v", err)
	}
	tab.cut(minChunkBytes)
	for name, c := range map[string]struct {
		h    *transport.Header
		body []byte
	}{
		"unknown region":       {&transport.Header{Region: 2, Count: 1}, nil},
		"no chunk's beginning": {h(1, 255), nil},
		"past the region":      {h(512, 89), nil},
		"ends within a chunk":  {h(0, 255), nil},
		"nothing":              {h(0, 0), nil},
		"half a window":        {h(0, 256), make([]byte, 16)},
		"empty window":         {h(0, 256), appendWindow(nil, window{first: 1})},
		"window outside":       {h(0, 256), appendWindow(nil, window{first: 256, count: 1})},
		"window too long":      {h(0, 256), appendWindow(nil, window{first: 255, count: 2})},
		"windows overlap":      {h(0, 256), appendWindow(appendWindow(nil, window{first: 1, count: 2}), window{first: 2, count: 1})},
		"window wraps round":   {h(0, 256), appendWindow(nil, window{first: 1, count: 2, addr: 1<<64 - 4096})},
	} {
		if err := tab.mapped(c.h, c.body); !errors.Is(err, transport.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzWindows(f *testing.F) {
	f.Add(appendWindow(nil, window{first: 3, count: 2, rkey: 1, addr: 4096}), uint64(0), uint32(256))
	f.Fuzz(func(t *testing.T, b []byte, first uint64, count uint32) {
		if first > 1<<60 {
			return // no region has so many pages
		}
		ws, err := parseWindows(b, first, count, 4096)
		if err != nil {
			return
		}
		var again []byte
		for _, w := range ws {
			again = appendWindow(again, w)
		}
		if !slices.Equal(again, b) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

// sysfsTree makes a tree like that of the kernel, of one device with one port.
func sysfsTree(t *testing.T, state string, gids map[string][3]string) string {
	root := t.TempDir()
	port := filepath.Join(root, "mlx5_0", "ports", "1")
	files := map[string]string{"state": state, "link_layer": "Ethernet", "rate": "100 Gb/sec (4X EDR)"}
	for i, g := range gids {
		files["gids/"+i], files["gid_attrs/types/"+i], files["gid_attrs/ndevs/"+i] = g[0], g[1], g[2]
	}
	for name, text := range files {
		path := filepath.Join(port, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestListAndChoose(t *testing.T) {
	gids := map[string][3]string{
		"0": {"fe80:0000:0000:0000:0ac0:ebff:fe11:2233", "IB/RoCE v1", "eth4"},
		"1": {"fe80:0000:0000:0000:0ac0:ebff:fe11:2233", "RoCE v2", "eth4"},
		"2": {"0000:0000:0000:0000:0000:ffff:0a4d:0001", "IB/RoCE v1", "eth4"},
		"3": {"0000:0000:0000:0000:0000:ffff:0a4d:0001", "RoCE v2", "eth4"},
		"4": {"0000:0000:0000:0000:0000:0000:0000:0000", "", ""},
	}
	for i := 5; i < 128; i++ { // what is empty; an address that was taken away leaves a gap
		gids[strconv.Itoa(i)] = gids["4"]
	}
	gids["40"] = [3]string{"0000:0000:0000:0000:0000:ffff:0a4d:0101", "RoCE v2", "eth4"}
	ports, err := list(sysfsTree(t, "4: ACTIVE", gids))
	if err == nil && len(ports) == 1 && len(ports[0].GIDs) == 5 {
		if g := ports[0].GIDs[4]; g.Index != 40 || g.Address.Unmap() != netip.MustParseAddr("10.77.1.1") || g.Type != "RoCE v2" {
			t.Errorf("after a gap: %+v", g)
		}
		ports[0].GIDs = ports[0].GIDs[:4]
	}
	if err != nil || len(ports) != 1 || ports[0].Problem != "" || len(ports[0].GIDs) != 4 || ports[0].Netdev != "eth4" {
		t.Fatalf("%+v, %v", ports, err)
	}
	local := netip.MustParseAddr("10.77.0.1")
	none := func(string) (string, error) { return "", errors.New("none") }
	for _, c := range []struct {
		want, netdev, problem string
		gid                   int
	}{
		{"", "eth4", "", 3}, {"mlx5_0", "", "", 3}, {"mlx5_0:1", "", "", 3}, {"eth4", "", "", 3},
		{"", "eth9", "serves the interface eth9", 0}, {"mlx5_1", "", `called "mlx5_1"`, 0}, {"mlx5_0:2", "", "is called", 0}, {"mlx5_0:x", "", "number", 0},
	} {
		p, g, err := choose(ports, c.want, c.netdev, local, none)
		if c.problem != "" {
			if err == nil || !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%+v: %v", c, err)
			}
		} else if err != nil || p.Device != "mlx5_0" || g.Index != c.gid {
			t.Errorf("%+v: %+v %+v %v", c, p, g, err)
		}
	}
	p, _, err := choose(ports, "", "ib0", local, func(string) (string, error) { return "mlx5_0", nil })
	if err != nil || p.Device != "mlx5_0" {
		t.Errorf("InfiniBand's interface: %+v, %v", p, err)
	}
	ports, err = list(sysfsTree(t, "1: DOWN", gids))
	if err != nil || len(ports) != 1 || !strings.Contains(ports[0].Problem, "DOWN") {
		t.Errorf("%+v, %v", ports, err)
	}
	if _, _, err := choose(ports, "mlx5_0", "", local, none); !errors.Is(err, ErrNoDevice) || !strings.Contains(err.Error(), "DOWN") {
		t.Errorf("a port that is down: %v", err)
	}
	if ports, err := list(filepath.Join(t.TempDir(), "none")); err != nil || ports != nil {
		t.Errorf("no ib_core: %v, %v", ports, err)
	}
}

func TestFifo(t *testing.T) {
	var q fifo[int]
	next, want := 0, 0
	for i := range 1000 {
		for range i % 7 {
			q.push(next)
			next++
		}
		for range min(i%5, q.len()) {
			if got := *q.peek(); got != want || q.pop() != want {
				t.Fatalf("got %d, want %d", got, want)
			}
			want++
		}
	}
	if q.len() != next-want {
		t.Errorf("%d left, want %d", q.len(), next-want)
	}
}

// The structures that are passed to C as arrays.
func TestLayout(t *testing.T) {
	if n := reflect.TypeFor[read]().Size(); n != 40 {
		t.Errorf("a read has %d bytes, struct pw_read 40", n)
	}
	if n := reflect.TypeFor[done]().Size(); n != 24 {
		t.Errorf("a done has %d bytes, struct pw_done 24", n)
	}
	if n := reflect.TypeFor[slot]().Size(); n != 24 {
		t.Errorf("a slot has %d bytes, struct pw_slot 24", n)
	}
}
