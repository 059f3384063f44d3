package relocate

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/vmtest"
)

// held counts the descriptors by which this process keeps the CPUs awake.
func held(t *testing.T) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); err == nil && to == "/dev/cpu_dma_latency" {
			n++
		}
	}
	return n
}

// TestAwake: the CPUs are kept awake from the switch-over to the end of the drain, no longer
// than the host says, and a host without the device relocates as well.
func TestAwake(t *testing.T) {
	can := 1
	if f, err := os.OpenFile("/dev/cpu_dma_latency", os.O_WRONLY, 0); err != nil {
		can = 0
	} else {
		f.Close()
	}
	for _, c := range []struct {
		name  string
		o     Options
		limit time.Duration
		lasts bool // until its end
	}{
		{"in a drain that does not end", Options{OnDemandOnly: true}, time.Hour, true},
		{"for a time", Options{OnDemandOnly: true}, 500 * time.Millisecond, false},
		{"never", Options{OnDemandOnly: true}, 0, false},
		{"to the end", Options{}, time.Hour, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, func(cfg *HostConfig) { cfg.Awake = c.limit })
			r.relocate(r.b.addr, c.o)
			if !c.o.OnDemandOnly {
				if s := r.awaitEnd(); s.Phase != PhaseDone {
					t.Fatalf("ended %s: %s", s.Phase, s.Error)
				}
				r.b.await(t, "web1", PhaseDone)
			} else {
				r.b.await(t, "web1", PhaseDraining)
			}
			if n := held(t); c.lasts && n != can || n > can || c.limit == 0 && n != 0 {
				t.Errorf("%d descriptors while it drains", n)
			}
			if !c.lasts {
				vmtest.Wait(t, "the CPUs to be let go", func() bool { return held(t) == 0 })
			}
		})
		if n := held(t); n != 0 {
			t.Errorf("%s: %d descriptors after its end", c.name, n)
		}
	}
}
