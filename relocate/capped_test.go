package relocate

import (
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
)

// On demand only a machine may never be whole, and nothing brings it back either. A cap
// that is set begins precache; the daemon that takes the drain up goes on with it.
func TestACapEndsOnDemandOnly(t *testing.T) {
	r := newRig(t, nil)
	r.relocate(r.b.addr, Options{OnDemandOnly: true, Codec: "none", Paused: true, KeepSource: true})
	r.b.await(t, "web1", PhaseDraining)
	vmtest.Wait(t, "the cap to be set at the source", func() bool { return r.a.SetBandwidth("web1", slow) == nil })
	r.b.said(t, "the rest of the memory follows in the background")
	vmtest.Wait(t, "the source to see it", func() bool {
		s := r.a.last(t, RoleSource)
		return !s.Options.OnDemandOnly && s.Options.Bandwidth == slow && s.PagesPrecache > 0
	})

	cfg := r.b.cfg
	cfg.Listen = []string{r.b.addr}
	r.b.stop(t)
	h, err := NewHost(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.b = &testHost{Host: h, dir: r.b.dir, addr: r.b.addr, serve: make(chan error, 1)}
	go func() { r.b.serve <- h.Serve() }()
	t.Cleanup(func() { r.b.stop(t) })
	if o := r.b.last(t, RoleDestination).Options; o.OnDemandOnly || o.Bandwidth != slow {
		t.Errorf("taken up with %+v", o)
	}
	vmtest.Wait(t, "the cap to be lifted", func() bool { return r.b.SetBandwidth("web1", 0) == nil })
	if s := r.awaitEnd(); s.Phase != PhaseDone {
		t.Fatalf("ended %s: %s", s.Phase, s.Error)
	}
	r.b.await(t, "web1", PhaseDone)
	if state := runState(t, r.b, "web1"); state != "paused" {
		t.Errorf("the machine is %s", state)
	}
	vmtest.CheckPattern(t, r.vm.RAM, r.want)
	vmtest.CheckPattern(t, r.b.dir+"/vm.mem", r.want)
}
