package relocate

import (
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/transport"
)

// What asks for RDMA where it cannot be had, or must not be used, is told what is
// missing, and the machine runs on; "auto" takes TCP. Where it can be had it is
// tested in the VM of transport/rdma/rdmatest.
func TestRDMAWithoutDevice(t *testing.T) {
	root := vmtest.Dir(t)
	a := startHost(t, root, "a", func(c *HostConfig) { c.RDMA.Policy = RDMAAuto })
	off := startHost(t, root, "off", func(c *HostConfig) { c.RDMA.Policy = RDMAOff })
	vm := vmtest.Start(t, a.dir)
	a.adopt(t, "web1", vm.QMP)

	if _, err := a.Relocate(t.Context(), "web1", off.addr, Options{Transport: "pigeon"}); err == nil || !strings.Contains(err.Error(), "pigeon") {
		t.Errorf("an unknown transport: %v", err)
	}
	if _, err := a.Relocate(t.Context(), "web1", off.addr, Options{RDMAPin: "some"}); err == nil || !strings.Contains(err.Error(), "some") {
		t.Errorf("an unknown way to pin: %v", err)
	}
	if _, err := a.Relocate(t.Context(), "web1", off.addr, Options{RDMAPrecache: "mail"}); err == nil || !strings.Contains(err.Error(), "mail") {
		t.Errorf("an unknown way for precache: %v", err)
	}
	if _, err := a.Relocate(t.Context(), "web1", off.addr, Options{RDMALost: "cry"}); err == nil || !strings.Contains(err.Error(), "cry") {
		t.Errorf("an unknown answer to the loss of RDMA: %v", err)
	}
	if _, err := a.Relocate(t.Context(), "web1", off.addr, Options{RDMALand: "sea"}); err == nil || !strings.Contains(err.Error(), "sea") {
		t.Errorf("an unknown place to land: %v", err)
	}
	if _, err := a.Relocate(t.Context(), "web1", off.addr, Options{Transport: TransportRDMA}); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseRolledBack)
	if s := a.last(t, RoleSource); !strings.Contains(s.Error, "built without RDMA") {
		t.Errorf("rolled back because of %q", s.Error)
	}
	if got := runState(t, a, "web1"); got != "running" {
		t.Errorf("at the source the machine is %q", got)
	}
	if _, err := a.Relocate(t.Context(), "web1", off.addr, Options{Transport: TransportAuto}); err != nil {
		t.Fatal(err)
	}
	vmtest.Wait(t, "both ends to be done", func() bool {
		return a.last(t, RoleSource).Phase == PhaseDone && off.last(t, RoleDestination).Phase == PhaseDone
	})
	for _, s := range []Status{a.last(t, RoleSource), off.last(t, RoleDestination)} {
		if s.Options.Transport != TransportTCP {
			t.Errorf("the %s says that pages went by %q", s.Role, s.Options.Transport)
		}
	}
	for _, h := range []*testHost{a, off} {
		killAll(t, h)
	}
}

// The policy decides before any device is looked for.
func TestRDMAPolicy(t *testing.T) {
	for _, c := range []struct {
		policy, want string
		fails        string // in the error
		tells        string // in the reason for TCP
	}{
		{"", TransportTCP, "", ""}, {RDMAOff, "", "", ""},
		{RDMAOff, TransportRDMA, "policy", ""}, {RDMAOff, TransportAuto, "", "off"},
		{"", TransportAuto, "", "ask"}, {RDMAAsk, TransportAuto, "", "ask"},
		{RDMAAsk, TransportRDMA, "built without", ""}, {RDMAAuto, TransportAuto, "", "built without"},
	} {
		h := &Host{cfg: HostConfig{RDMA: RDMAConfig{Policy: c.policy}}}
		dev, reason, err := h.rdmaDevice(c.want, nil)
		if dev != nil || (err != nil) != (c.fails != "") || err != nil && !strings.Contains(err.Error(), c.fails) ||
			!strings.Contains(reason, c.tells) || (c.tells == "") != (reason == "") {
			t.Errorf("%+v: %q, %v", c, reason, err)
		}
	}
}

// How precache comes by RDMA is what was asked for, or what the codec makes of it; a
// peer of an earlier version has no SEND.
func TestPrecacheBy(t *testing.T) {
	const old, now = transport.FeatureRDMA, transport.FeatureRDMA | transport.FeatureSend
	for _, c := range []struct {
		codec, asked string
		features     transport.Features
		want         string
	}{
		{"auto", "", now, "read"}, {"none", "", now, "read"}, {"", "", now, "read"}, {"s2", "", now, "send"}, {"zstd", "", now, "send"},
		{"auto", "send", now, "send"}, {"none", "send", now, "send"}, {"zstd", "read", now, "read"}, {"zstd", "tcp", now, "tcp"}, {"none", "tcp", now, "tcp"},
		{"zstd", "", old, "tcp"}, {"s2", "send", old, "tcp"}, {"auto", "send", old, "read"}, {"none", "", old, "read"},
	} {
		if got := precacheBy(&Options{Codec: c.codec, RDMAPrecache: c.asked}, c.features); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// Nobody has keys to the memory of a guest that runs, whatever the destination says of a
// pre-transfer.
func TestServedLive(t *testing.T) {
	for _, c := range []struct {
		kind     transport.Kind
		features transport.Features
		want     bool
	}{
		{transport.Precache, transport.AllFeatures, true}, {transport.Demand, transport.AllFeatures, false},
		{transport.Precache, transport.AllFeatures | transport.FeatureRDMA, false}, {transport.Demand, transport.FeatureRDMA, false},
		{transport.Precache, transport.FeatureRDMA | transport.FeatureSend, false},
	} {
		if got := servedLive(c.kind, c.features); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}
