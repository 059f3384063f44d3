package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate"
)

// shareCap is the cap of a host in this test, in bytes per second, and capConf the
// configuration that says so.
const (
	shareCap = 4e6
	capConf  = "[relocate]\nhost_bandwidth = \"4MB/s\"\n"
)

// wire is what has come over the wire for each machine, web1 and web2, at one moment.
func (m *matrix) wire() (n [2]int64) {
	m.t.Helper()
	r, err := m.b.client.Status(m.t.Context(), "")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, s := range r.Relocations {
		if s.Role == relocate.RoleDestination {
			n[strings.Index("12", strings.TrimPrefix(s.VM, "web"))] = int64(s.BytesWire)
		}
	}
	return n
}

// moved waits until the machines together have had so many bytes since from, and
// returns how they were divided.
func (m *matrix) moved(from [2]int64, bytes int64) (d [2]int64) {
	m.t.Helper()
	vmtest.Wait(m.t, "bytes on the wire", func() bool {
		now := m.wire()
		d = [2]int64{now[0] - from[0], now[1] - from[1]}
		return d[0]+d[1] >= bytes
	})
	return d
}

// lift takes the cap away, by a changed configuration or by the operator's command.
func lift(t *testing.T, n *node, configured bool) {
	if !configured {
		var none int64
		l, err := n.client.SetLimits(t.Context(), api.LimitsRequest{HostBandwidth: &none})
		if err != nil || l.HostBandwidth != 0 || l.Configured != shareCap {
			t.Fatalf("limits %+v: %v", l, err)
		}
		return
	}
	conf, err := os.ReadFile(n.conf())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.conf(), []byte(strings.Replace(string(conf), capConf, "", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// TestHostCapIsShared moves two machines at a time where one of the hosts has a cap:
// they have half of it each; what one is not to have, the other one takes; and
// without the cap, lifted while they move, both arrive whole.
func TestHostCapIsShared(t *testing.T) {
	for i, capped := range []string{"a", "b"} {
		t.Run("at "+capped, func(t *testing.T) {
			r, dir := pair(t)
			m := onRigWith(t, r, dir, i, map[string]string{capped: capConf})
			for _, n := range []*node{m.a, m.b} {
				if err := os.MkdirAll(filepath.Join(n.dir, "two"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			two := vmtest.Start(t, filepath.Join(m.a.dir, "two"))
			want := vmtest.Pattern(12)
			vmtest.WritePattern(t, two.RAM, want)
			m.begin("", "")
			if _, err := m.a.client.Add(t.Context(), "web2", two.QMP); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			for _, vm := range []string{"web1", "web2"} {
				if _, err := m.a.client.Relocate(t.Context(), vm, api.RelocateRequest{To: m.to, Options: relocate.Options{Codec: "none"}}); err != nil {
					t.Fatal(err)
				}
			}
			var at [2]int64
			vmtest.Wait(t, "both to be under way", func() bool { at = m.wire(); return min(at[0], at[1]) > 1<<20 })
			half := m.moved(at, 8<<20)
			if sum := half[0] + half[1]; min(half[0], half[1])*100 < sum*40 {
				t.Errorf("of %d bytes the machines had %d and %d, want half each", sum, half[0], half[1])
			}
			if err := m.b.client.SetBandwidth(t.Context(), "web1", shareCap/8); err != nil {
				t.Fatal(err)
			}
			m.moved(m.wire(), 2<<20) // what was under way
			rest := m.moved(m.wire(), 6<<20)
			if sum := rest[0] + rest[1]; rest[1]*100 < sum*75 {
				t.Errorf("of %d bytes the machine that may have all but an eighth had %d", sum, rest[1])
			}
			// A slow machine makes the sum less, never more: a bucket of 1 MiB for
			// each machine, and one that was on its way.
			sum, most := m.wire(), shareCap*time.Since(began).Seconds()+4<<20
			if n := sum[0] + sum[1]; float64(n) > most {
				t.Errorf("%d bytes in %v, more than %.0f", n, time.Since(began), most)
			}
			n := map[string]*node{"a": m.a, "b": m.b}[capped]
			lift(t, n, capped == "a")
			if err := m.b.client.SetBandwidth(t.Context(), "web1", 0); err != nil {
				t.Fatal(err)
			}
			vmtest.Wait(t, "both to arrive", func() bool {
				done := 0
				r, err := m.b.client.Status(t.Context(), "")
				if err != nil {
					return false
				}
				for _, s := range r.Relocations {
					if s.Role == relocate.RoleDestination && s.Phase == relocate.PhaseDone {
						done++
					}
				}
				return done == 2
			})
			vmtest.CheckPattern(t, filepath.Join(m.b.dir, "vm.mem"), m.want)
			vmtest.CheckPattern(t, filepath.Join(m.b.dir, "two", "vm.mem"), want)
		})
	}
}
