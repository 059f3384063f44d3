package relocate

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// Peers that are alive (they answer PING) and do nothing: only a deadline of
// each step helps. Here is a host with less patience against a peer of the
// test's own that says what it likes.

var impatient = deadlines{
	dial: 2 * time.Second, prepare: time.Second, state: 2 * time.Second,
	load: time.Second, inDoubt: time.Second, rollback: rollbackTimeout,
}

// peer is a destination that the test plays.
type peer struct {
	t *testing.T
	l *tcp.Listener
}

func startPeer(t *testing.T, offer transport.Offer, no *transport.RemoteError) *peer {
	t.Helper()
	offer.Role = transport.Destination
	l, err := tcp.Listen("127.0.0.1:0", tcp.ListenOptions{
		Admit: func(transport.Hello, string) (transport.Offer, *transport.RemoteError) { return offer, no },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &peer{t, l}
}

// control takes the session's control channel and the offer on it.
func (p *peer) control() *control {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
	defer cancel()
	conn, err := p.l.Accept(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	ctl, err := newControl(p.t.Context(), conn, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(ctl.close)
	if err := ctl.expect(ctx, msgOffer, "OFFER", 10*time.Second, nil); err != nil {
		p.t.Fatal(err)
	}
	return ctl
}

// channels takes the page channels that the source dials, and leaves them be.
func (p *peer) channels() {
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(p.t.Context())
	p.t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := p.l.Accept(ctx)
			if err != nil {
				return
			}
			defer conn.Close()
		}
	}()
}

// sourceOnly is a host with a machine and no second one.
func sourceOnly(t *testing.T) *testHost {
	t.Helper()
	a := startHost(t, vmtest.Dir(t), "a", func(c *HostConfig) { c.deadlines = impatient })
	a.adopt(t, "web1", vmtest.Start(t, a.dir).QMP)
	return a
}

// rollsBack waits for the source to go back, and asserts that the machine runs.
func rollsBack(t *testing.T, a *testHost, reason string) {
	t.Helper()
	a.await(t, "web1", PhaseRolledBack)
	if s := a.last(t, RoleSource); !strings.Contains(s.Error, reason) {
		t.Errorf("the source says %q, want %q", s.Error, reason)
	}
	if got := runState(t, a, "web1"); got != "running" {
		t.Errorf("the machine is %q at its source", got)
	}
	vmtest.NoTrace(t, a.dir, "*.json", "vm.mem", "vm.qmp")
}

func TestDestinationStalls(t *testing.T) {
	for _, tt := range []struct {
		name, reason string
		play         func(*testing.T, *peer)
	}{
		{"before READY", "no READY from the peer within 1s", func(_ *testing.T, p *peer) { p.control() }},
		{"before it reads the device state", "no LOADED from the peer within 1s", func(t *testing.T, p *peer) {
			ctl := p.control()
			p.channels()
			if err := ctl.send(msgReady, struct{}{}); err != nil {
				t.Error(err)
			}
		}},
		{"with a message out of turn", "where READY (17) was due", func(t *testing.T, p *peer) {
			if err := p.control().send(msgLoaded, struct{}{}); err != nil {
				t.Error(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := sourceOnly(t)
			p := startPeer(t, transport.Offer{Features: transport.AllFeatures}, nil)
			if _, err := a.Relocate(t.Context(), "web1", p.l.Addr().String(), Options{}); err != nil {
				t.Fatal(err)
			}
			tt.play(t, p)
			rollsBack(t, a, tt.reason)
		})
	}
}

func TestDestinationRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, reason string
		offer        transport.Offer
		no           *transport.RemoteError
	}{
		{name: "version", reason: "this side speaks 7 to 9", no: &transport.RemoteError{Code: transport.CodeVersion, Text: "this side speaks 7 to 9"}},
		{name: "feature", reason: "features the listening side requires", offer: transport.Offer{Required: 1 << 20}},
		{name: "busy", reason: "arriving here already", no: &transport.RemoteError{Code: transport.CodeBusy, Text: "64 relocations are arriving here already"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := sourceOnly(t)
			p := startPeer(t, tt.offer, tt.no)
			if _, err := a.Relocate(t.Context(), "web1", p.l.Addr().String(), Options{}); err != nil {
				t.Fatal(err)
			}
			rollsBack(t, a, tt.reason)
		})
	}
}

// actor is a source that the test plays, with a real machine to offer.
type actor struct {
	t     *testing.T
	root  string
	b     *testHost
	ctl   *control
	hello transport.Hello
	offer offer
}

func startActor(t *testing.T) *actor {
	t.Helper()
	p := &actor{t: t, root: vmtest.Dir(t)}
	p.b = startHost(t, p.root, "b", func(c *HostConfig) { c.deadlines = impatient })
	dir := filepath.Join(p.root, "a")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	vm := vmtest.Start(t, dir)
	mon, err := qemu.Connect(t.Context(), vm.QMP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mon.Close() })
	desc, err := mon.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.offer = offer{VM: "web1", Description: desc, Regions: []transport.Region{
		{Name: desc.Backends[0].ID, PageSize: 4096, Pages: vmtest.RAMBytes >> 12},
	}}
	token, err := newToken()
	if err != nil {
		t.Fatal(err)
	}
	p.hello = transport.Hello{Kind: transport.Control, Role: transport.Source, Epoch: firstEpoch, Token: tokenBytes(token), Features: transport.AllFeatures}
	conn, err := tcp.Dial(t.Context(), p.b.addr, tcp.Options{Hello: p.hello})
	if err != nil {
		t.Fatal(err)
	}
	if p.ctl, err = newControl(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.ctl.close)
	return p
}

// token is how the host names the session.
func (p *actor) token() string { return hex.EncodeToString(p.hello.Token[:]) }

func (p *actor) say(kind uint16, v any) {
	p.t.Helper()
	if err := p.ctl.send(kind, v); err != nil {
		p.t.Fatal(err)
	}
}

// gaveUp waits for the destination's end of it, which must leave nothing.
func (p *actor) gaveUp(reason string) {
	p.t.Helper()
	_, err := p.ctl.next(p.t.Context())
	var no *abortError
	if !errors.As(err, &no) || !strings.Contains(no.reason, reason) {
		p.t.Errorf("the source is told %v, want ABORT because of %q", err, reason)
	}
	vmtest.Wait(p.t, "the destination to be done", func() bool {
		p.b.mu.Lock()
		defer p.b.mu.Unlock()
		return len(p.b.incoming) == 0
	})
	if s := p.b.last(p.t, RoleDestination); s.Phase != PhaseRolledBack {
		p.t.Errorf("the destination ended %s: %s", s.Phase, s.Error)
	}
	vmtest.NoTrace(p.t, p.b.dir, "*.json")
	if rec := p.b.tombstone[p.token()]; rec == nil {
		p.t.Error("the destination has forgotten the session")
	} else if _, err := qemu.Adopt(rec.PID, rec.StartTime, ""); rec.PID != 0 && !errors.Is(err, qemu.ErrProcessGone) {
		p.t.Errorf("its QEMU, pid %d, is still there: %v", rec.PID, err)
	}
}

func TestSourceStalls(t *testing.T) {
	for _, tt := range []struct {
		name, reason string
		play         func(*actor)
	}{
		{"before OFFER", "no OFFER from the peer within 2s", func(*actor) {}},
		{"before the device state", "within 2s", func(p *actor) {
			p.say(msgOffer, p.offer)
			if err := p.ctl.expect(p.t.Context(), msgReady, "READY", 20*time.Second, nil); err != nil {
				p.t.Fatal(err)
			}
		}},
		{"in the middle of the device state", "within 2s", func(p *actor) {
			p.say(msgOffer, p.offer)
			if err := p.ctl.expect(p.t.Context(), msgReady, "READY", 20*time.Second, nil); err != nil {
				p.t.Fatal(err)
			}
			// The head of a migration stream: QEVM, version 3.
			if err := p.ctl.ch.SendState([]byte("QEVM\x00\x00\x00\x03"), false); err != nil {
				p.t.Fatal(err)
			}
			p.say(msgRegions, regionsMsg{Regions: p.offer.Regions, Stopped: time.Now()})
		}},
		{"with garbage for device state", "", func(p *actor) {
			p.say(msgOffer, p.offer)
			if err := p.ctl.expect(p.t.Context(), msgReady, "READY", 20*time.Second, nil); err != nil {
				p.t.Fatal(err)
			}
			p.say(msgRegions, regionsMsg{Regions: p.offer.Regions, Stopped: time.Now()})
			if err := p.ctl.ch.SendState([]byte(strings.Repeat("garbage ", 512)), true); err != nil {
				p.t.Fatal(err)
			}
		}},
		{"with an offer that does not fit", "does not fit backend", func(p *actor) {
			p.offer.Regions[0].Pages = 1 << 50
			p.say(msgOffer, p.offer)
		}},
		{"with GO out of turn", fmt.Sprintf("peer sent message %d where OFFER", msgGo), func(p *actor) { p.say(msgGo, goMsg{Run: true}) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := startActor(t)
			tt.play(p)
			p.gaveUp(tt.reason)
		})
	}
}
