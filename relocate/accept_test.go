package relocate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// arriving is a session at its destination that has not had its offer yet.
func arriving(t *testing.T, h *testHost) *incoming {
	t.Helper()
	token, err := newToken()
	if err != nil {
		t.Fatal(err)
	}
	in := newIncoming(h.Host, &record{Token: token, Role: RoleDestination, Phase: PhaseConnecting})
	h.mu.Lock()
	h.incoming[token] = in
	h.mu.Unlock()
	return in
}

func leaves(h *testHost, in *incoming) {
	h.mu.Lock()
	delete(h.incoming, in.rec.Token)
	h.mu.Unlock()
	in.cancel(nil)
}

func offerOf(vm string, pages uint64, pageSize uint32, size int64) *offer {
	return &offer{VM: vm, Allocated: 1 << 20, Regions: []transport.Region{{Name: "mem", Pages: pages, PageSize: pageSize}},
		Description: qemu.Description{Backends: []qemu.Backend{{ID: "mem", Size: size}}}}
}

// TestOffersAtOnce: machines that arrive at the same time see each other's names as
// they are; of several of one name one is taken. Run under the race detector.
func TestOffersAtOnce(t *testing.T) {
	h := startHost(t, vmtest.Dir(t), "a", nil)
	var wg sync.WaitGroup
	const sessions = 16
	errs := make([]error, 2*sessions)
	ins := make([]*incoming, 2*sessions)
	for i := range ins {
		ins[i] = arriving(t, h)
	}
	for i, in := range ins {
		wg.Go(func() {
			vm := fmt.Sprintf("web%d", i)
			if i >= sessions {
				vm = "same"
			}
			errs[i] = in.accept(offerOf(vm, 256, 4096, 1<<20))
			h.SetBandwidth("other", 1) // looks at all names
		})
	}
	wg.Wait()
	taken := 0
	for i, err := range errs {
		switch {
		case i < sessions && err != nil:
			t.Errorf("web%d: %v", i, err)
		case i >= sessions && err == nil:
			taken++
		case i >= sessions && !strings.Contains(err.Error(), "arriving here already"):
			t.Error(err)
		}
	}
	if taken != 1 {
		t.Errorf("%d machines of one name were taken", taken)
	}
	for _, in := range ins {
		leaves(h, in)
	}
}

// TestHostileOffers: sizes that no machine has, and those that are one only because
// their product wraps, are refused before anything is made.
func TestHostileOffers(t *testing.T) {
	h := startHost(t, vmtest.Dir(t), "a", nil)
	for _, tt := range []struct {
		name string
		o    *offer
	}{
		{"no pages", offerOf("web1", 0, 4096, 0)},
		{"page of 2 GiB whose bytes wrap", offerOf("web1", 1<<33+1, 1<<31, 1<<31)},
		{"page of 64 MiB whose bytes wrap", offerOf("web1", 1<<38+16, 1<<26, 1<<30)},
		{"pages of an odd size", offerOf("web1", 256, 4097, 256*4097)},
		{"small pages", offerOf("web1", 256, 2048, 256*2048)},
		{"another size than the backend's", offerOf("web1", 256, 4096, 1<<21)},
		{"negative memory", func() *offer { o := offerOf("web1", 256, 4096, 1<<20); o.Allocated = -1; return o }()},
		{"more memory than the machine has", func() *offer { o := offerOf("web1", 256, 4096, 1<<20); o.Allocated = 1 << 30; return o }()},
		{"all memory there is", func() *offer { o := offerOf("web1", 256, 4096, 1<<20); o.Allocated = 1<<63 - 1; return o }()},
		{"no machine's name", offerOf("../web1", 256, 4096, 1<<20)},
		{"a name like an option", offerOf("-web1", 256, 4096, 1<<20)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := arriving(t, h)
			defer leaves(h, in)
			if err := in.accept(tt.o); err == nil {
				t.Errorf("taken: %+v", tt.o)
			}
		})
	}
	in := arriving(t, h)
	defer leaves(h, in)
	if err := in.accept(offerOf("web1", 256, 4096, 1<<20)); err != nil {
		t.Errorf("an ordinary offer: %v", err)
	}
}

// channelPair is a control channel between a source of the test's own and a host.
func channelPair(t *testing.T) (source *control, destination *tcp.Conn) {
	t.Helper()
	l, err := tcp.Listen("127.0.0.1:0", tcp.ListenOptions{Admit: func(transport.Hello, string) (transport.Offer, *transport.RemoteError) {
		return transport.Offer{Role: transport.Destination, Features: transport.AllFeatures}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := tcp.Dial(t.Context(), l.Addr().String(), tcp.Options{Hello: transport.Hello{Kind: transport.Control, Role: transport.Source, Epoch: firstEpoch}})
	if err != nil {
		t.Fatal(err)
	}
	if source, err = newControl(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.close)
	if destination, err = l.Accept(t.Context()); err != nil {
		t.Fatal(err)
	}
	return source, destination
}

// TestReturnAfterTheEnd: a source that dials anew at the moment in which its session
// ends is not left with a channel that nobody reads.
func TestReturnAfterTheEnd(t *testing.T) {
	h := startHost(t, vmtest.Dir(t), "a", nil)
	in := arriving(t, h)
	defer leaves(h, in)
	close(in.done)
	for range 16 { // by chance either branch of a select
		_, conn := channelPair(t)
		in.hand(conn)
		select {
		case <-conn.Done():
		default:
			conn.Close()
			t.Fatal("the channel of a session that is over stays open")
		}
	}
}

// TestFloodIsNoPatience: a peer that sends without a pause does not get more time by it.
func TestFloodIsNoPatience(t *testing.T) {
	h := startHost(t, vmtest.Dir(t), "a", func(c *HostConfig) { c.deadlines = impatient })
	for _, tt := range []struct {
		name string
		kind uint16 // of what the peer sends
		wait func(conn *tcp.Conn) error
	}{
		{"before GO", msgRegions, func(conn *tcp.Conn) error {
			in := arriving(t, h)
			defer leaves(h, in)
			ctl, err := newControl(h.ctx, conn, nil)
			if err != nil {
				return err
			}
			defer ctl.close()
			if _, _, err = in.awaitGo(ctl); err == nil || !strings.Contains(err.Error(), "did not say GO") {
				return fmt.Errorf("awaitGo: %w", err)
			}
			return nil
		}},
		{"after the end", msgSync, func(conn *tcp.Conn) error {
			h.lastWord(conn, &record{Phase: PhaseDone})
			return nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			source, conn := channelPair(t)
			flooded := make(chan struct{})
			go func() {
				defer close(flooded)
				for source.send(tt.kind, struct{}{}) == nil {
				}
			}()
			done := make(chan error, 1)
			go func() { done <- tt.wait(conn) }()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Error("the flood is listened to for ever")
			}
			conn.Close()
			<-flooded
		})
	}
}

// TestArrivingIsNotUnknown: whoever asks at the destination for a machine that is on its
// way is told so.
func TestArrivingIsNotUnknown(t *testing.T) {
	h := startHost(t, vmtest.Dir(t), "a", nil)
	in := arriving(t, h)
	defer leaves(h, in)
	if err := in.accept(offerOf("web1", 256, 4096, 1<<20)); err != nil {
		t.Fatal(err)
	}
	_, relocated := h.Relocate(t.Context(), "web1", "127.0.0.1:1", Options{})
	for what, err := range map[string]error{"cancel": h.Cancel(t.Context(), "web1"), "forget": h.Forget("web1"), "relocate": relocated} {
		if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "it arrives here from") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := h.Forget("web2"); !errors.Is(err, ErrUnknownMachine) {
		t.Errorf("a machine that is not here at all: %v", err)
	}
}

// TestStrangersAreSaid: the host that refuses a peer says why in its own log, but whoever
// scans its port does not fill it.
func TestStrangersAreSaid(t *testing.T) {
	var log lockedBuffer
	h := startHost(t, vmtest.Dir(t), "a", func(c *HostConfig) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	for range 5 { // probes of a monitoring system, which say nothing
		conn, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, conn)
		conn.Close()
	}
	if text := log.String(); strings.Contains(text, "not let in") {
		t.Errorf("the log says of probes\n%s", text)
	}
	for range 50 {
		conn, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: scanner.example.org\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, conn) // until it is closed
		conn.Close()
	}
	vmtest.Wait(t, "a line about it", func() bool { return strings.Contains(log.String(), "a peer was not let in") })
	if n := strings.Count(log.String(), "a peer was not let in"); n > 10 {
		t.Errorf("%d lines about 50 connections", n)
	}
	if text := log.String(); !strings.Contains(text, "malformed") || !strings.Contains(text, "127.0.0.1") {
		t.Errorf("the log says\n%s", text)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
