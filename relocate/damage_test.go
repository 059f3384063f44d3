package relocate

import (
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
)

// TestDamagedOnTheWire: batches that are damaged on their way, encoded or not, are noticed
// and brought again; the machine arrives whole, and the operator can see that channels were
// lost.
func TestDamagedOnTheWire(t *testing.T) {
	for _, codec := range []string{"none", "s2", "zstd"} {
		t.Run(codec, func(t *testing.T) {
			r := newRig(t, nil)
			r.relocate(r.proxy.Addr(), Options{Bandwidth: slow, Codec: codec})
			r.a.await(t, "web1", PhaseDraining)
			r.b.await(t, "web1", PhaseDraining)
			r.proxy.Spoil(5) // less than what makes the engine give up, 8 in a row
			vmtest.Wait(t, "the damage", r.proxy.Spoilt)
			vmtest.Wait(t, "channels to be lost by it and to come back", func() bool {
				for _, s := range r.b.Statuses() {
					if s.ChannelReopens > 0 {
						return true
					}
				}
				return false
			})
			if err := r.b.SetBandwidth("web1", 0); err != nil {
				t.Fatal(err)
			}
			r.a.await(t, "web1", PhaseDone)
			r.b.await(t, "web1", PhaseDone)
			r.runsAt(r.b)
			r.a.said(t, "page channel lost, dialling again")
		})
	}
}
