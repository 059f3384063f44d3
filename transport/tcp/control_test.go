package tcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/transporttest"
)

// controls opens a control channel; f breaks it.
func controls(t *testing.T, f *transporttest.Faults, tune Tuning) (dst, src *Conn) {
	t.Helper()
	h := harness{addr: "127.0.0.1:0", tune: tune}
	o := transporttest.Options{Kind: transport.Control, Faults: f, DeadAfter: tune.DeadAfter}
	dst, src = h.conns(t, o)
	t.Cleanup(func() { dst.Close(); src.Close() })
	return dst, src
}

func control(t *testing.T, c *Conn) *Control {
	t.Helper()
	m, err := c.Control()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMessages(t *testing.T) {
	d, s := controls(t, nil, Tuning{})
	dst, src := control(t, d), control(t, s)
	type offer struct {
		Name string `json:"name"`
		N    int    `json:"n"`
	}
	for i := range 200 {
		if err := src.Send(uint16(i), offer{"vm", i}); err != nil {
			t.Fatal(err)
		}
		msg, err := dst.Receive(t.Context())
		var o offer
		if err != nil || msg.Kind != uint16(i) || json.Unmarshal(msg.Body, &o) != nil || o != (offer{"vm", i}) {
			t.Fatalf("%+v, %v", msg, err)
		}
	}
	if err := dst.Send(1, strings.Repeat("x", transport.MaxMessage-2)); err != nil {
		t.Fatal(err)
	}
	if msg, err := src.Receive(t.Context()); err != nil || len(msg.Body) != transport.MaxMessage {
		t.Fatalf("%d bytes, %v", len(msg.Body), err)
	}
	if err := dst.Send(1, strings.Repeat("x", transport.MaxMessage)); err == nil || !strings.Contains(err.Error(), "limit 1048576") {
		t.Errorf("a message over the limit: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dst.Receive(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Receive with a cancelled context: %v", err)
	}
	// What was sent before the end is received, then comes io.EOF.
	src.Send(7, "last")
	s.Close()
	if msg, err := dst.Receive(t.Context()); err != nil || msg.Kind != 7 {
		t.Fatalf("%+v, %v", msg, err)
	}
	if _, err := dst.Receive(t.Context()); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

func TestCloseWith(t *testing.T) {
	d, s := controls(t, nil, Tuning{})
	s.CloseWith(transport.CodeShutdown, "maintenance")
	_, err := control(t, d).Receive(t.Context())
	var remote *transport.RemoteError
	if !errors.As(err, &remote) || remote.Code != transport.CodeShutdown || remote.Text != "maintenance" {
		t.Errorf("the peer saw %v", err)
	}
	<-d.Done()
	if d.Err() == nil {
		t.Error("Err is nil after Done")
	}
}

// TestState moves more state than the buffer takes, with messages between.
func TestState(t *testing.T) {
	d, s := controls(t, nil, Tuning{})
	dst, src := control(t, d), control(t, s)
	state := make([]byte, 17<<20+3)
	rand.NewChaCha8([32]byte{2}).Read(state)
	sent := make(chan error, 1)
	go func() {
		var err error
		for off := 0; off < len(state) && err == nil; off += 1 << 20 {
			end := min(len(state), off+1<<20)
			if err = src.SendState(state[off:end], end == len(state)); err == nil {
				err = src.Send(uint16(off>>20), off)
			}
		}
		sent <- err
	}()
	// The first messages come although nobody reads the state.
	for i := range 3 {
		if m, err := dst.Receive(t.Context()); err != nil || m.Kind != uint16(i) {
			t.Fatalf("%+v, %v", m, err)
		}
	}
	got, err := io.ReadAll(dst.StateReader())
	if err != nil || !bytes.Equal(got, state) {
		t.Fatalf("%d of %d bytes, %v", len(got), len(state), err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if n, err := dst.StateReader().Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the end: %d, %v", n, err)
	}
}

func TestStateCutShort(t *testing.T) {
	d, s := controls(t, nil, Tuning{})
	if err := control(t, s).SendState([]byte("half"), false); err != nil {
		t.Fatal(err)
	}
	s.Close()
	got, err := io.ReadAll(control(t, d).StateReader())
	if string(got) != "half" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestStateFromDestination(t *testing.T) {
	d, s := controls(t, nil, Tuning{})
	control(t, d).SendState([]byte("x"), true)
	_, err := control(t, s).Receive(t.Context())
	if !errors.Is(err, transport.ErrMalformed) || !strings.Contains(err.Error(), "STATE on a control channel at the source") {
		t.Errorf("the source saw %v", err)
	}
}

// TestKeepalive has an idle channel outlive DeadAfter, and end when the network
// falls silent.
func TestKeepalive(t *testing.T) {
	f := transporttest.NewFaults()
	d, s := controls(t, f, Tuning{PingAfter: 20 * time.Millisecond, DeadAfter: 300 * time.Millisecond})
	select {
	case <-d.Done():
		t.Fatal(d.Err())
	case <-s.Done():
		t.Fatal(s.Err())
	case <-time.After(3 * time.Second): // the claim is about time
	}
	if d.RTT() == 0 {
		t.Error("no round trip was measured")
	}
	f.Writing(transporttest.StallAfter(0))
	start := time.Now()
	_, err := control(t, d).Receive(t.Context())
	if !errors.Is(err, ErrDead) || !strings.Contains(err.Error(), "nothing came from") {
		t.Errorf("a silent peer: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("noticed after %v", took)
	}
}

// TestBackpressureIsNotDeath leaves state unread for longer than DeadAfter: the
// channel must live, since its peer does.
func TestBackpressureIsNotDeath(t *testing.T) {
	d, s := controls(t, nil, Tuning{PingAfter: 20 * time.Millisecond, DeadAfter: time.Second})
	state := make([]byte, 32<<20)
	sent := make(chan error, 1)
	go func() { sent <- control(t, s).SendState(state, true) }()
	select {
	case <-d.Done():
		t.Fatal(d.Err())
	case <-s.Done():
		t.Fatal(s.Err())
	case <-time.After(3 * time.Second): // the claim is about time
	}
	if n, err := io.Copy(io.Discard, control(t, d).StateReader()); err != nil || n != int64(len(state)) {
		t.Fatalf("%d, %v", n, err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// TestSlowLink has an answer take far longer than DeadAfter, always moving.
func TestSlowLink(t *testing.T) {
	im := transporttest.NewImage(t, transport.Region{ID: 1, Name: "ram", Pages: 512, PageSize: 4096})
	im.Mix(1, 1)
	f := transporttest.NewFaults()
	h := harness{addr: "127.0.0.1:0"}
	ff, r := h.Pair(t, transporttest.Options{Kind: transport.Precache, Regions: im.Regions, Faults: f, DeadAfter: 250 * time.Millisecond})
	served := make(chan error, 1)
	go func() { served <- im.Serve(r, false) }()
	f.Writing(transporttest.Throttle(2 << 20))
	sink := transporttest.NewSink(t, im.Regions...)
	all := transport.Range{Region: 1, Count: 512}
	if err := ff.Fetch([]transport.Fetch{{ID: 1, Range: all}}); err != nil {
		t.Fatal(err)
	}
	var c transport.Completion
	if err := ff.Receive(sink, &c); err != nil {
		t.Fatal(err)
	}
	if c.Wire < 500*time.Millisecond {
		t.Errorf("the link was not slow: %v", c.Wire)
	}
	sink.Check(t, im, all)
	f.Writing(transporttest.Fault{})
	ff.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	r.Close()
}

func TestIndex(t *testing.T) {
	h := harness{addr: "127.0.0.1:0"}
	d, s := h.conns(t, transporttest.Options{Kind: transport.Control, Features: transport.AllFeatures})
	t.Cleanup(func() { d.Close(); s.Close() })
	dst, src := control(t, d), control(t, s)
	const pages = 40000 // more than one frame takes
	want := make([]byte, pages*transport.HashSize)
	rand.NewChaCha8([32]byte{7}).Read(want)
	got := make([]byte, len(want))
	src.OnIndex(func(r transport.Range, hashes []byte) error {
		if r.Region != 3 || r.First < 100 || r.First+uint64(r.Count) > 100+pages {
			t.Errorf("index of %+v", r)
			return errors.New("not what was sent")
		}
		copy(got[(r.First-100)*transport.HashSize:], hashes)
		return nil
	})
	if err := dst.SendIndex(transport.Range{Region: 3, First: 100, Count: pages}, want); err != nil {
		t.Fatal(err)
	}
	if err := dst.SendIndex(transport.Range{Region: 3, Count: 2}, want[:31]); err == nil {
		t.Error("31 bytes for 2 pages were sent")
	}
	if err := dst.Send(9, 1); err != nil { // it comes after the index
		t.Fatal(err)
	}
	if _, err := src.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the hashes are not those that were sent")
	}
	src.OnIndex(func(transport.Range, []byte) error { return errors.New("no such region") })
	if err := dst.SendIndex(transport.Range{Count: 1}, want[:16]); err != nil {
		t.Fatal(err)
	}
	if _, err := src.Receive(t.Context()); err == nil || !strings.Contains(err.Error(), "no such region") {
		t.Errorf("a refused index ended the channel with %v", err)
	}
}

// TestIndexOutOfPlace has hashes where nobody wants them.
func TestIndexOutOfPlace(t *testing.T) {
	for name, tc := range map[string]struct {
		features transport.Features
		handler  bool
	}{"no handler": {transport.AllFeatures, false}, "no feature": {transport.AllFeatures &^ transport.FeatureWarm, true}} {
		t.Run(name, func(t *testing.T) {
			h := harness{addr: "127.0.0.1:0"}
			d, s := h.conns(t, transporttest.Options{Kind: transport.Control, Features: tc.features})
			t.Cleanup(func() { d.Close(); s.Close() })
			dst, src := control(t, d), control(t, s)
			if tc.handler {
				src.OnIndex(func(transport.Range, []byte) error { t.Error("taken"); return nil })
			}
			dst.SendIndex(transport.Range{Count: 1}, make([]byte, 16)) // the peer says what it thinks
			if _, err := src.Receive(t.Context()); !errors.Is(err, transport.ErrMalformed) {
				t.Errorf("%v, want a malformed frame", err)
			}
		})
	}
}
