package relocate

import (
	"bytes"
	"context"
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
	"golang.org/x/sys/unix"
)

// writingVM starts two hosts and a machine on the first whose guest writes without a
// pause, among memory that neither compresses nor repeats.
func writingVM(t *testing.T, root string) (a, b *testHost, want []byte) {
	t.Helper()
	a, b = startHost(t, root, "a", nil), startHost(t, root, "b", nil)
	vm := vmtest.Start(t, a.dir, vmtest.Writer(t)...)
	want = noise(1, vmtest.WriterOffset-noiseAt)
	vmtest.Writes(t, vm.RAM)
	vmtest.WritePattern(t, vm.RAM, want)
	a.adopt(t, "web1", vm.QMP)
	t.Cleanup(func() { killAll(t, b) })
	return a, b, want
}

// sameMemory compares all of the memory of a machine that was moved, paused, with
// what its source has kept.
func sameMemory(t *testing.T, a, b *testHost, want []byte) {
	t.Helper()
	from, to := vmtest.MapRAM(t, filepath.Join(a.dir, "vm.mem")), vmtest.MapRAM(t, filepath.Join(b.dir, "vm.mem"))
	for at := 0; at < len(from); at += 4096 {
		if !bytes.Equal(from[at:at+4096], to[at:at+4096]) {
			t.Fatalf("page %d differs after a paused relocation", at/4096)
		}
	}
	vmtest.CheckPattern(t, filepath.Join(b.dir, "vm.mem"), want)
}

// early awaits the pre-transfer, and that it has copied so many pages.
func early(t *testing.T, h *testHost, pages uint64) {
	t.Helper()
	vmtest.Wait(t, "the pre-transfer", func() bool {
		for _, s := range h.Statuses() {
			if s.Phase == PhasePreTransfer && s.PagesPreTransfer >= pages {
				return true
			}
		}
		return false
	})
}

func TestPreTransferOfAWritingGuest(t *testing.T) {
	a, b, want := writingVM(t, vmtest.Dir(t))
	o := Options{PreTransfer: true, Paused: true, KeepSource: true}
	if _, err := a.Relocate(t.Context(), "web1", b.addr, o); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseDone)
	b.await(t, "web1", PhaseDone)
	sameMemory(t, a, b, want)
	s := a.last(t, RoleSource)
	t.Logf("before: %d pages, %d bytes, %.0f ms, %d passes; after: %d candidates, %d the same, %d bytes", s.PagesPreTransfer, s.BytesPreTransfer, s.PreTransferMS,
		s.PreTransferPass, s.PagesCandidate, s.PagesSame, s.BytesWire)
	if s.BytesPreTransfer < uint64(len(want)) {
		t.Errorf("%d bytes moved before the switch-over, of which the noise alone has %d", s.BytesPreTransfer, len(want))
	}
	// What the guest writes, and little else, must move again.
	if most := uint64(vmtest.WriterBytes + 2<<20); s.BytesWire > most {
		t.Errorf("%d bytes moved after the switch-over, want at most %d", s.BytesWire, most)
	}
	if s.PagesSame < uint64(len(want))/4096 {
		t.Errorf("%d pages were confirmed, of %d that nobody writes", s.PagesSame, len(want)/4096)
	}
	// How many the guest writes before it stops is the host's business: on a busy one few.
	if s.PagesCandidate <= s.PagesSame {
		t.Errorf("%d of %d candidates were confirmed, though the guest writes to %d of them", s.PagesSame, s.PagesCandidate, vmtest.WriterBytes/4096)
	}
}

// A guest that runs on, on demand only, touches pages that are candidates.
func TestPreTransferOnDemandOnly(t *testing.T) {
	a, b, _ := writingVM(t, vmtest.Dir(t))
	if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{PreTransfer: true, OnDemandOnly: true, KeepSource: true}); err != nil {
		t.Fatal(err)
	}
	vmtest.Wait(t, "pages confirmed on demand", func() bool {
		for _, s := range b.Statuses() {
			if s.PagesSame > 0 && s.PagesDemand >= vmtest.WriterBytes/4096 && s.PagesPrecache == 0 {
				return true
			}
		}
		return false
	})
	vmtest.Writes(t, filepath.Join(b.dir, "vm.mem")) // it lives
}

// A guest that has rewritten most of what was copied is not copied once more.
func TestPreTransferOfARewrittenGuest(t *testing.T) {
	a, b, want := writingVM(t, vmtest.Dir(t))
	o := Options{PreTransfer: true, Bandwidth: 8 << 20, Codec: "none", Paused: true, KeepSource: true}
	if _, err := a.Relocate(t.Context(), "web1", b.addr, o); err != nil {
		t.Fatal(err)
	}
	early(t, a, 5_500) // of the 8,000 after which it looks for the first time
	want = noise(2, len(want))
	vmtest.WritePattern(t, filepath.Join(a.dir, "vm.mem"), want)
	b.said(t, "ended early, since most of what was copied has changed already")
	vmtest.Wait(t, "the cap to be lifted", func() bool { return a.SetBandwidth("web1", 0) == nil })
	a.await(t, "web1", PhaseDone)
	b.await(t, "web1", PhaseDone)
	sameMemory(t, a, b, want)
	// On a busy machine it may have been through with the memory before it was rewritten.
	if s := a.last(t, RoleSource); s.PreTransferPass > 2 {
		t.Errorf("%d passes over memory that was all rewritten", s.PreTransferPass)
	}
}

// Time and bandwidth bound it; the switch-over comes with what there is.
func TestPreTransferTimeout(t *testing.T) {
	a, b, want := writingVM(t, vmtest.Dir(t))
	const cap, limit = 2 << 20, 1500 * time.Millisecond
	o := Options{PreTransfer: true, PreTransferTimeoutMS: limit.Milliseconds(), Bandwidth: cap, Codec: "none", Paused: true, KeepSource: true}
	if _, err := a.Relocate(t.Context(), "web1", b.addr, o); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseReady)
	b.said(t, "its time of 1.5s was over")
	s := b.last(t, RoleDestination)
	t.Logf("%d pages, %d bytes in %.0f ms", s.PagesPreTransfer, s.BytesPreTransfer, s.PreTransferMS)
	// The cap, its burst of 1 MiB, and what was under way.
	if most := uint64(cap*limit.Seconds() + 2<<20); s.PagesPreTransfer == 0 || s.BytesPreTransfer > most {
		t.Errorf("%d pages and %d bytes were copied, want some and at most %d", s.PagesPreTransfer, s.BytesPreTransfer, most)
	}
	vmtest.Wait(t, "the cap to be lifted", func() bool { return a.SetBandwidth("web1", 0) == nil })
	a.await(t, "web1", PhaseDone)
	b.await(t, "web1", PhaseDone)
	sameMemory(t, a, b, want)
}

// The operator lifts the cap in the middle of it, at the source.
func TestPreTransferBandwidthChanges(t *testing.T) {
	a, b, want := writingVM(t, vmtest.Dir(t))
	o := Options{PreTransfer: true, Bandwidth: 1 << 20, Codec: "none", Paused: true, KeepSource: true}
	if _, err := a.Relocate(t.Context(), "web1", b.addr, o); err != nil {
		t.Fatal(err)
	}
	early(t, a, 1)
	if err := a.SetBandwidth("web1", 0); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	a.await(t, "web1", PhaseDone) // at the cap it would take a minute and more
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v without a cap", took)
	}
	b.await(t, "web1", PhaseDone)
	sameMemory(t, a, b, want)
}

func TestPreTransferCancelled(t *testing.T) {
	a, b, want := writingVM(t, vmtest.Dir(t))
	if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{PreTransfer: true, Bandwidth: 4 << 20, Codec: "none"}); err != nil {
		t.Fatal(err)
	}
	early(t, a, 100)
	if err := a.Cancel(t.Context(), "web1"); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseRolledBack)
	b.await(t, "web1", PhaseRolledBack)
	untouched(t, a, b, want)
}

// untouched asserts that the machine runs at a and nothing is left at b.
func untouched(t *testing.T, a, b *testHost, want []byte) {
	t.Helper()
	if got := runState(t, a, "web1"); got != "running" {
		t.Errorf("the machine is %q at its source", got)
	}
	vmtest.Writes(t, filepath.Join(a.dir, "vm.mem"))
	vmtest.CheckPattern(t, filepath.Join(a.dir, "vm.mem"), want)
	vmtest.Wait(t, "b to be empty", func() bool { return !exists(filepath.Join(b.dir, "vm.mem")) })
	vmtest.NoTrace(t, b.dir, "*.json", "ballast")
}

// The destination's tmpfs fills up, by somebody else's file: better now than after
// the switch-over.
func TestPreTransferNoRoom(t *testing.T) {
	root := vmtest.Dir(t)
	dir := filepath.Join(root, "b")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=90m,mode=0700"); err != nil {
		t.Fatalf("mount a small tmpfs (this test needs root): %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	a, b, want := writingVM(t, root)
	if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{PreTransfer: true, Bandwidth: 2 << 20, Codec: "none"}); err != nil {
		t.Fatal(err)
	}
	early(t, a, 1)
	f, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for buf := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(buf)
	}
	a.await(t, "web1", PhaseRolledBack)
	b.await(t, "web1", PhaseRolledBack)
	if s := a.last(t, RoleSource); !strings.Contains(s.Error, "out of memory for the guest") {
		t.Errorf("the source says %q", s.Error)
	}
	untouched(t, a, b, want)
}

// A memory that takes no candidates, or a peer that does not know the option.
func TestPreTransferByADestinationThatCannot(t *testing.T) {
	a := sourceOnly(t)
	p := startPeer(t, transport.Offer{Features: transport.AllFeatures}, nil)
	if _, err := a.Relocate(t.Context(), "web1", p.l.Addr().String(), Options{PreTransfer: true}); err != nil {
		t.Fatal(err)
	}
	ctl := p.control()
	p.channels()
	if err := ctl.send(msgReady, struct{}{}); err != nil {
		t.Fatal(err)
	}
	if err := ctl.expect(t.Context(), msgRegions, "REGIONS", 10*time.Second, nil); err != nil {
		t.Error(err)
	}
	ctl.close()
	rollsBack(t, a, "control channel")
}

func TestPreTransferWithAHostileDestination(t *testing.T) {
	ready := func(ctl *control) error { return ctl.send(msgReady, readyMsg{PreTransfer: true}) }
	for _, tt := range []struct {
		name, reason string
		options      Options
		play         func(*control) error
	}{
		{"not asked for", "nobody asked for", Options{}, ready},
		{"never over", "no PREPARED from the peer within", Options{PreTransfer: true, PreTransferTimeoutMS: 100}, ready},
		{"out of turn", "peer sent message 18 during the pre-transfer", Options{PreTransfer: true}, func(ctl *control) error {
			return errorsOf(ready(ctl), ctl.send(msgLoaded, struct{}{}))
		}},
		{"hashes of pages that there are not", "INDEX of region 0", Options{PreTransfer: true}, func(ctl *control) error {
			return errorsOf(ready(ctl), ctl.ch.SendIndex(transport.Range{First: 1 << 40, Count: 1}, make([]byte, transport.HashSize)))
		}},
		{"gives up", "no room", Options{PreTransfer: true}, func(ctl *control) error {
			return errorsOf(ready(ctl), ctl.send(msgAbort, abortMsg{"no room"}))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := sourceOnly(t)
			p := startPeer(t, transport.Offer{Features: transport.AllFeatures}, nil)
			if _, err := a.Relocate(t.Context(), "web1", p.l.Addr().String(), tt.options); err != nil {
				t.Fatal(err)
			}
			ctl := p.control()
			p.channels()
			if err := tt.play(ctl); err != nil {
				t.Fatal(err)
			}
			rollsBack(t, a, tt.reason)
		})
	}
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestPreTransferReadsNothingElse has a destination that fetches when it may not: on
// a demand channel before the freeze, and after PREPARED.
func TestPreTransferReadsNothingElse(t *testing.T) {
	a := sourceOnly(t)
	p := startPeer(t, transport.Offer{Features: transport.AllFeatures}, nil)
	if _, err := a.Relocate(t.Context(), "web1", p.l.Addr().String(), Options{PreTransfer: true, PrecacheChannels: 1, DemandChannels: 1}); err != nil {
		t.Fatal(err)
	}
	ctl := p.control()
	if err := ctl.send(msgReady, readyMsg{PreTransfer: true}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	pages := make(map[transport.Kind]transport.Fetcher)
	for len(pages) < 2 {
		conn, err := p.l.Accept(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetRegions([]transport.Region{{ID: 0, Pages: vmtest.RAMBytes / 4096, PageSize: 4096}})
		if pages[conn.Kind()], err = conn.Fetcher(); err != nil {
			t.Fatal(err)
		}
	}
	fetch := func(kind transport.Kind) (c transport.Completion, err error) {
		if err = pages[kind].Fetch([]transport.Fetch{{ID: 1, Range: transport.Range{First: 1, Count: 1}}}); err == nil {
			err = pages[kind].Receive(nowhere{}, &c)
		}
		return c, err
	}
	if c, err := fetch(transport.Precache); err != nil || c.Refused != nil {
		t.Errorf("a fetch of the pre-transfer: %v, %v", err, c.Refused)
	}
	demand := make(chan string, 1)
	go func() {
		c, err := fetch(transport.Demand)
		demand <- fmt.Sprint(c.Refused, err)
	}()
	select {
	case got := <-demand:
		t.Errorf("a demand fetch before the freeze was answered: %s", got)
	case <-time.After(200 * time.Millisecond):
	}
	// Held between PREPARED and REGIONS by a source that is about to roll back:
	// the channel is shut at once, whatever it does next.
	if err := ctl.send(msgPrepared, struct{}{}); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseState)
	ctl.close()
	rollsBack(t, a, "control channel")
	<-demand
}

// nowhere takes pages and forgets them.
type nowhere struct{}

func (nowhere) Reserve(_ transport.Range, dst [][]byte) {
	for i := range dst {
		dst[i] = make([]byte, 4096)
	}
}
func (nowhere) Commit(transport.Range, [][]byte) error { return nil }
func (nowhere) Abort(transport.Range, [][]byte)        {}
func (nowhere) Zero(transport.Range) error             { return nil }
func (nowhere) Same(transport.Range, [][]byte) error   { return nil }

// TestPreTransferWithAHostileSource has a source that says same of pages of which
// the destination has nothing, all through the pre-transfer, and sends damaged
// answers: nothing of it is taken, and the relocation ends as if it had not been.
func TestPreTransferWithAHostileSource(t *testing.T) {
	root := vmtest.Dir(t)
	b := startHost(t, root, "b", nil)
	a := startHost(t, root, "a", nil)
	vm := vmtest.Start(t, a.dir)
	a.adopt(t, "web1", vm.QMP)
	desc := a.describe(t, "web1")
	for _, tt := range []struct {
		vm, said string
		answer   func(conn *tcp.Conn) error
	}{
		{"same-of-nothing", "0 pages copied in", func(conn *tcp.Conn) error {
			return answering(conn, func(r transport.Responder, f transport.Fetch) error {
				return r.Answer(&transport.Answer{Fetch: f, Memory: make([]byte, int(f.Count)*4096),
					Extents: []transport.Extent{{Count: f.Count, Kind: transport.Same}}})
			})
		}},
		{"hangs-up", "lost 8 times, the last time: ", func(conn *tcp.Conn) error { return conn.Close() }},
		{"refuses", "lost 8 times, the last time: peer refused", func(conn *tcp.Conn) error {
			return answering(conn, func(r transport.Responder, f transport.Fetch) error {
				return r.Refuse(f.ID, transport.CodeIO, "no")
			})
		}},
	} {
		t.Run(tt.vm, func(t *testing.T) {
			token := transport.NewToken()
			o := Options{PreTransfer: true, DemandChannels: 1, PrecacheChannels: 1, Codec: "auto"}
			region := transport.Region{Name: desc.Backends[0].ID, PageSize: 4096, Pages: vmtest.RAMBytes / 4096}
			dial := func(kind transport.Kind, epoch uint64) (*tcp.Conn, error) {
				return tcp.Dial(t.Context(), b.addr, tcp.Options{Hello: transport.Hello{
					Kind: kind, Role: transport.Source, Epoch: epoch, Token: token, Features: transport.AllFeatures}})
			}
			conn, err := dial(transport.Control, firstEpoch)
			if err != nil {
				t.Fatal(err)
			}
			ctl, err := newControl(t.Context(), conn, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer ctl.close()
			ctl.ch.OnIndex(nil)
			if err := ctl.send(msgOffer, offer{VM: tt.vm, Description: desc, Regions: []transport.Region{region}, Options: o}); err != nil {
				t.Fatal(err)
			}
			var ready readyMsg
			if err := ctl.expect(t.Context(), msgReady, "READY", 20*time.Second, &ready); err != nil || !ready.PreTransfer {
				t.Fatalf("%+v, %v", ready, err)
			}
			done := make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				defer close(done)
				for epoch := uint64(2); ctx.Err() == nil; epoch++ {
					conn, err := dial(transport.Precache, epoch)
					if err != nil {
						return
					}
					conn.SetRegions([]transport.Region{region})
					stop := context.AfterFunc(ctx, func() { conn.Close() })
					tt.answer(conn) // until the other side has enough of it
					stop()
					conn.Close()
				}
			}()
			defer func() { cancel(); <-done }()
			for {
				m, err := ctl.next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if m.Kind == msgPrepared {
					break
				}
			}
			b.said(t, tt.said)
			if s := b.last(t, RoleDestination); s.PagesCandidate != 0 || s.PagesRemaining != s.PagesTotal {
				t.Errorf("%d candidates, %d of %d pages absent, though the source has sent nothing", s.PagesCandidate, s.PagesRemaining, s.PagesTotal)
			}
			ctl.close()
			vmtest.Wait(t, "the destination to give up", func() bool { return b.last(t, RoleDestination).Phase == PhaseRolledBack })
			b.awaitIdle(t) // the next one has the same memory file
		})
	}
}

// answering answers each fetch by lie.
func answering(conn *tcp.Conn, lie func(transport.Responder, transport.Fetch) error) error {
	r, err := conn.Responder()
	if err != nil {
		return err
	}
	var buf [64]transport.Fetch
	for {
		n, err := r.Next(buf[:])
		if err != nil {
			return err
		}
		for _, f := range buf[:n] {
			if err := lie(r, f); err != nil {
				return err
			}
		}
	}
}

// describe is a machine's description, as an offer has it.
func (h *testHost) describe(t *testing.T, name string) qemu.Description {
	t.Helper()
	h.mu.Lock()
	m := h.machines[name]
	h.mu.Unlock()
	d, err := m.vm.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return d
}
