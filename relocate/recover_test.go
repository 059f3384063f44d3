package relocate

import (
	"context"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// left is a machine whose daemon was killed in the middle of its relocation, and whose QEMU
// hangs when the next daemon starts.
type left struct {
	h   *testHost
	rec *record
}

// leave writes down what a daemon leaves that was killed in that phase: the guest has
// stopped, the settings are those of a migration.
func leave(t *testing.T, p Phase, peer string) left {
	t.Helper()
	root := vmtest.Dir(t)
	h := startHost(t, root, "a", nil)
	vm := vmtest.Start(t, h.dir)
	h.adopt(t, "web1", vm.QMP)
	h.stop(t)
	mon, err := qemu.Connect(t.Context(), vm.QMP)
	if err != nil {
		t.Fatal(err)
	}
	defer mon.Close()
	desc, err := mon.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mig, err := mon.PrepareSource(t.Context())
	if err == nil {
		defer mig.Close()
		err = mon.Pause(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	token, err := newToken()
	if err != nil {
		t.Fatal(err)
	}
	b := desc.Backends[0]
	m := memoryRecord{ID: b.ID, Path: b.Path, Size: b.Size}
	if err := m.note(); err != nil {
		t.Fatal(err)
	}
	rec := &record{
		Token: token, VM: "web1", Role: RoleSource, Phase: p, Peer: peer, QMP: vm.QMP, PID: desc.PID, StartTime: desc.Start,
		WasRun: true, Saved: mig.Saved(), Memory: []memoryRecord{m}, Started: time.Now(),
		Options: Options{Codec: "auto", DemandChannels: 1, PrecacheChannels: 1},
		Regions: []transport.Region{{Name: b.ID, PageSize: 4096, Pages: uint64(b.Size) >> 12}},
	}
	if err := h.journal.write(rec); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(desc.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Kill(desc.PID, unix.SIGCONT) })
	cfg := h.cfg
	return left{startHost(t, root, "a", func(c *HostConfig) { *c = cfg }), rec}
}

// goesOn has QEMU answer again.
func (l left) goesOn(t *testing.T) {
	t.Helper()
	if err := unix.Kill(l.rec.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// inHand asserts that the daemon has not given the machine up.
func (l left) inHand(t *testing.T) {
	t.Helper()
	if s := l.h.last(t, RoleSource); s.Phase.Final() {
		t.Errorf("while QEMU hangs the relocation is %s: %q", s.Phase, s.Error)
	}
	if got := runState(t, l.h, "web1"); got != "not adopted" {
		t.Errorf("while QEMU hangs the machine is %q", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := l.h.Adopt(ctx, "web1", l.rec.QMP); err == nil {
		t.Error("it was adopted beside its relocation")
	}
	// Were the daemon killed now, the next one would still know the machine.
	var known []savedMachine
	if err := readJSON(l.h.machinesFile(), &known); err != nil || len(known) != 1 {
		t.Errorf("the list of machines is %+v, %v", known, err)
	}
}

// TestRollbackOfAHangingQEMU: a guest that stands still since its daemon was killed is
// resumed as soon as its QEMU answers, be that after the start of the next daemon.
func TestRollbackOfAHangingQEMU(t *testing.T) {
	l := leave(t, PhaseState, "127.0.0.1:1")
	l.inHand(t)
	l.goesOn(t)
	l.h.await(t, "web1", PhaseRolledBack)
	vmtest.Wait(t, "the machine to run", func() bool { return runState(t, l.h, "web1") == "running" })
}

// TestRollbackOfADeadQEMU: one that ends in the meantime is not waited for.
func TestRollbackOfADeadQEMU(t *testing.T) {
	l := leave(t, PhaseState, "127.0.0.1:1")
	l.inHand(t)
	if err := unix.Kill(l.rec.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.h.await(t, "web1", PhaseRolledBack)
	vmtest.Wait(t, "the machine to be forgotten", func() bool {
		var known []savedMachine
		return readJSON(l.h.machinesFile(), &known) == nil && len(known) == 0
	})
}

// answerSync plays a destination that answers the first SYNC of a session with that phase,
// and says when it has.
func answerSync(t *testing.T, p *peer, token string, phase Phase) <-chan struct{} {
	t.Helper()
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		for {
			conn, err := p.l.Accept(t.Context())
			if err != nil {
				return
			}
			raw := conn.Token()
			if conn.Kind() != transport.Control || hex.EncodeToString(raw[:]) != token {
				conn.Close()
				continue
			}
			ctl, err := newControl(t.Context(), conn, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer ctl.close()
			if err := ctl.expect(t.Context(), msgSync, "SYNC", 10*time.Second, nil); err != nil {
				t.Error(err)
			}
			if err := ctl.send(msgSync, syncMsg{Phase: phase}); err != nil {
				t.Error(err)
			}
			return
		}
	}()
	return asked
}

// TestDestinationContradictsItself: one that has said RUNNING cannot have given the machine up
// before. Whatever is wrong with it, the source must not run the machine, too.
func TestDestinationContradictsItself(t *testing.T) {
	p := startPeer(t, transport.Offer{Features: transport.AllFeatures}, nil)
	l := leave(t, PhaseDraining, p.l.Addr().String())
	l.goesOn(t)
	<-answerSync(t, p, l.rec.Token, PhaseRolledBack)
	vmtest.Wait(t, "the source to decide", func() bool {
		s := l.h.last(t, RoleSource)
		return s.Phase.Final() || strings.Contains(s.Error, "had said that it runs")
	})
	if s := l.h.last(t, RoleSource); s.Phase != PhaseDraining {
		t.Errorf("the relocation is %s: %s", s.Phase, s.Error)
	}
	mon, err := qemu.Connect(t.Context(), l.rec.QMP)
	if err == nil {
		defer mon.Close()
		if s, err := mon.RunState(t.Context()); err != nil || s.Running {
			t.Errorf("the machine is %+v at its source, %v", s, err)
		}
	} else if got := runState(t, l.h, "web1"); got != "paused" { // the host has its monitor
		t.Errorf("the machine is %q at its source", got)
	}
}

// TestTakeBackFromAHangingQEMU: the destination has proved that it never ran the machine, so
// the source's is the only one, and it is waited for.
func TestTakeBackFromAHangingQEMU(t *testing.T) {
	p := startPeer(t, transport.Offer{Features: transport.AllFeatures}, nil)
	l := leave(t, PhaseCommitted, p.l.Addr().String())
	l.inHand(t)
	asked := answerSync(t, p, l.rec.Token, PhaseRolledBack)
	<-asked
	l.goesOn(t)
	l.h.await(t, "web1", PhaseRolledBack)
	vmtest.Wait(t, "the machine to run", func() bool { return runState(t, l.h, "web1") == "running" })
}

// fullClaims makes the claims of a relocation whose last page has come.
func fullClaims(t *testing.T, h *Host, rec *record) {
	t.Helper()
	in := newIncoming(h, rec)
	defer in.cancel(nil)
	g := &guestMemory{in: in}
	for _, r := range rec.Regions {
		res, err := g.residency(r, true)
		if err != nil {
			t.Fatal(err)
		}
		res.Zero(0, r.Pages)
	}
	for _, table := range g.tables {
		if err := sysmem.Unmap(table); err != nil {
			t.Error(err)
		}
	}
}

// TestKilledAsItWasDone: a daemon may be killed between the last page and the journal's last
// word. The machine is whole then, and its successor says so, to the source, too.
func TestKilledAsItWasDone(t *testing.T) {
	for _, tt := range []struct{ whole, adopted bool }{{false, false}, {true, false}, {true, true}} {
		adopted := tt.adopted
		r := newRig(t, nil)
		r.arrives(Options{})
		r.b.awaitIdle(t)
		cfg := r.b.cfg
		r.b.stop(t)
		recs, err := r.b.journal.load(time.Now())
		if err != nil || len(recs) != 1 {
			t.Fatalf("the journal: %+v, %v", recs, err)
		}
		recs[0].Phase, recs[0].Ended = PhaseDraining, time.Time{}
		if !tt.whole { // the claims are there, and full
			recs[0].Whole = false
			fullClaims(t, r.b.Host, recs[0])
		}
		if err := r.b.journal.write(recs[0]); err != nil {
			t.Fatal(err)
		}
		if !adopted {
			if err := os.Remove(r.b.machinesFile()); err != nil {
				t.Fatal(err)
			}
		}
		r.b = startHost(t, r.root, "b", func(c *HostConfig) { *c = cfg })
		vmtest.Wait(t, "the relocation to be over", func() bool {
			s := r.b.last(t, RoleDestination)
			if s.Phase == PhaseDraining && s.Error != "" {
				t.Fatalf("adopted %v: it drains what is there: %s", adopted, s.Error)
			}
			return s.Phase == PhaseDone
		})
		if got := runState(t, r.b, "web1"); got != "running" {
			t.Errorf("adopted %v: the machine is %q", adopted, got)
		}
		// What a source hears that was away meanwhile.
		hello := transport.Hello{Kind: transport.Control, Role: transport.Source, Epoch: 77, Token: tokenBytes(recs[0].Token), Features: transport.AllFeatures}
		conn, err := tcp.Dial(t.Context(), r.b.addr, tcp.Options{Hello: hello})
		if err != nil {
			t.Fatal(err)
		}
		ctl, err := newControl(t.Context(), conn, nil)
		if err != nil {
			t.Fatal(err)
		}
		var theirs syncMsg
		if err = ctl.send(msgSync, syncMsg{Phase: PhaseDraining}); err == nil {
			err = ctl.expect(t.Context(), msgSync, "SYNC", 10*time.Second, &theirs)
		}
		if err != nil || theirs.Phase != PhaseDone {
			t.Errorf("adopted %v: the source is told %q, %v", adopted, theirs.Phase, err)
		}
		ctl.close()
		killAll(t, r.b)
		r.b.stop(t)
		r.a.stop(t)
	}
}
