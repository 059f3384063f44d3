//go:build rdmavm

package rdma

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/softroce"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/transporttest"
	"github.com/vishvananda/netlink"
)

// taker is a sink that takes pages out of the Fetcher's memory.
type taker struct{ *transporttest.Sink }

func (taker) Takes() bool { return true }

func (s taker) Take(r transport.Range, src [][]byte) error {
	dst := make([][]byte, r.Count)
	s.Reserve(r, dst)
	for i := range dst {
		if dst[i] != nil {
			copy(dst[i], src[i])
		}
		clear(src[i])
	}
	return s.Commit(r, dst)
}

// taking gives a Fetcher's sinks the ability to take.
type taking struct{ transport.Fetcher }

func (f taking) Receive(s transport.Sink, c *transport.Completion) error {
	if own, ok := s.(*transporttest.Sink); ok {
		s = taker{own}
	}
	return f.Fetcher.Receive(s, c)
}

// batchHarness has precache answered by SEND: by every other channel into a sink that
// takes.
type batchHarness struct {
	src, dst *Device
	pairs    int
}

func (*batchHarness) PrecacheOnly() {}

func (h *batchHarness) Pair(t testing.TB, o transporttest.Options) (transport.Fetcher, transport.Responder) {
	if o.Kind != transport.Precache { // of a case that wants one of each
		t.Fatalf("a %v channel is not for SEND", o.Kind)
	}
	r := newRig(t, rigOptions{kind: o.Kind, srcDev: h.src, dstDev: h.dst, regions: o.Regions, dead: o.DeadAfter, codec: o.Codec, batch: true,
		fetch: FetchOptions{Spin: 20 * time.Microsecond},
		hello: transport.Hello{Features: o.Features, MaxBody: o.MaxBody, MaxCount: o.MaxCount, Index: o.Index}})
	resp, err := r.src.Responder()
	if err != nil {
		t.Fatal(err)
	}
	h.pairs++
	var f transport.Fetcher = r.b
	if o.Image != nil { // else the case reads the source's end itself, and may not have begun
		up := &upBatch{BatchFetcher: r.b, t: t}
		t.Cleanup(func() {
			if n := r.e.Sent().Messages.Load(); up.fits && n == 0 {
				t.Error("nothing came by SEND")
			}
		})
		f = up
	}
	if h.pairs%2 == 0 {
		f = taking{f}
	}
	return f, resp
}

// upBatch holds the first Fetch until SEND is up.
type upBatch struct {
	*BatchFetcher
	t    testing.TB
	fits bool // one was sent whose answer fits into a message
}

func (u *upBatch) Fetch(fs []transport.Fetch) error {
	for end := time.Now().Add(10 * time.Second); !u.Up() && !u.closed.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			u.t.Fatal("RDMA does not come up")
		}
	}
	err := u.BatchFetcher.Fetch(fs)
	for i := range fs {
		u.fits = u.fits || err == nil && int(fs[i].Count)*u.box.pageSize[fs[i].Region] < u.slotSize-4096
	}
	return err
}

func TestSuiteBatch(t *testing.T) {
	transporttest.RunPrecache(t, func(t *testing.T) transporttest.Harness {
		return &batchHarness{src: testDevice(t), dst: testDevice(t)}
	})
}

// batch is a channel whose answers come by SEND.
type batch struct {
	*rig
	t    *testing.T
	im   *transporttest.Image
	sink *transporttest.Sink
	resp transport.Responder
	id   uint64
}

func newBatch(t *testing.T, pages uint64, o rigOptions) *batch {
	t.Helper()
	reg := transport.Region{ID: 1, Name: "ram", Pages: pages, PageSize: pageSize}
	im := transporttest.NewImage(t, reg)
	for p := range pages {
		im.Put(1, p, transporttest.Text, p) // each has bytes, and they shrink
	}
	o.kind, o.batch, o.regions = transport.Precache, true, im.Regions
	if o.codec == 0 {
		o.codec = transport.ModeS2
	}
	o.hello.Features = transport.AllFeatures &^ transport.FeatureWarm
	b := &batch{rig: newRig(t, o), t: t, im: im, sink: transporttest.NewSink(t, reg)}
	var err error
	if b.resp, err = b.src.Responder(); err != nil {
		t.Fatal(err)
	}
	return b
}

// serve answers until the channel ends.
func (b *batch) serve() {
	served := make(chan error, 1)
	go func() { served <- b.im.Serve(b.resp, true) }()
	b.t.Cleanup(func() {
		b.b.Close()
		b.src.Close()
		<-served
	})
	await(b.t, "answers by SEND", b.b.Up)
}

func (b *batch) post(first, pages uint64, each uint32) (n int) {
	b.t.Helper()
	var fs []transport.Fetch
	for p := first; p < first+pages; p += uint64(each) {
		b.id++
		fs = append(fs, transport.Fetch{ID: b.id, Range: transport.Range{Region: 1, First: p, Count: each}})
	}
	if err := b.b.Fetch(fs); err != nil {
		b.t.Fatal(err)
	}
	return len(fs)
}

// receive takes n answers, each of a fetch of its own.
func (b *batch) receive(n int) {
	b.t.Helper()
	seen := make(map[uint64]bool)
	for range n {
		var c transport.Completion
		if err := b.b.Receive(b.sink, &c); err != nil {
			b.t.Fatal(err)
		}
		if seen[c.ID] || c.Refused != nil {
			b.t.Fatalf("fetch %d answered twice, or refused: %+v", c.ID, c)
		}
		seen[c.ID] = true
	}
}

func (b *batch) whole(pages uint64) {
	b.t.Helper()
	b.sink.Check(b.t, b.im, transport.Range{Region: 1, Count: uint32(pages)})
	if left := b.b.Outstanding(nil); len(left) != 0 {
		b.t.Errorf("outstanding at the end: %v", left)
	}
}

// fell waits for the word that RDMA is over.
func (b *batch) fell(words string) {
	b.t.Helper()
	select {
	case err := <-b.down:
		if !strings.Contains(err.Error(), words) {
			b.t.Errorf("RDMA ended because of %q, want %q in it", err, words)
		}
	case <-time.After(10 * time.Second):
		b.t.Fatal("nobody was told that RDMA is over")
	}
	if b.b.Up() {
		b.t.Error("RDMA is up still")
	}
}

// All comes by SEND, compressed, and nothing by the connection.
func TestBatchStream(t *testing.T) {
	b := newBatch(t, 4096, rigOptions{codec: transport.ModeZstd})
	b.serve()
	for p := uint64(0); p < 4096; p += 1024 {
		b.receive(b.post(p, 1024, 32))
	}
	b.whole(4096)
	s, sent := b.b.Stats(), b.e.Sent()
	if n := s.Messages.Load(); n != 128 || s.Beneath.Load() != 0 || sent.Messages.Load() != n || sent.Bytes.Load() != s.MessageBytes.Load() {
		t.Errorf("%d messages of %d bytes came, %d of %d were sent, %d answers by the connection", n, s.MessageBytes.Load(), sent.Messages.Load(), sent.Bytes.Load(), s.Beneath.Load())
	}
	if n := s.MessageBytes.Load(); n > 4096*pageSize/2 {
		t.Errorf("%d bytes for %d of text", n, 4096*pageSize)
	}
	if sent.Building.Load() == 0 || b.src.Carried() != int64(s.MessageBytes.Load()) {
		t.Errorf("making them took %d ns; %d bytes were carried", sent.Building.Load(), b.src.Carried())
	}
	if in, _ := b.dst.Bytes(); in > 4096 {
		t.Errorf("%d bytes came by the connection", in)
	}
}

// frame is the good answer to a fetch.
func (b *batch) frame(f transport.Fetch) []byte {
	h := transport.Header{Type: transport.TypePages, ID: f.ID, Region: f.Region, Count: f.Count, First: f.First}
	return transport.AppendFrame(nil, h, b.im.Memory(f.Range))
}

// say sends a message, whatever it is.
func (b *batch) say(msg []byte) {
	b.t.Helper()
	b.a.mu.Lock()
	s := b.a.s
	b.a.mu.Unlock()
	mem, _, ok := s.Room()
	if !ok {
		b.t.Fatal("the source cannot send")
	}
	defer s.Leave()
	copy(mem, msg)
	if !s.Send(len(msg)) {
		b.t.Fatal("the message did not go")
	}
}

// A source that sends what it must not: RDMA ends, the operator is told why, and the
// pages come by the connection, each once.
func TestBatchHostile(t *testing.T) {
	edit := func(f func(h *transport.Header), body []byte) func(b *batch, x transport.Fetch) []byte {
		return func(b *batch, x transport.Fetch) []byte {
			h := transport.Header{Type: transport.TypePages, ID: x.ID, Region: x.Region, Count: x.Count, First: x.First}
			f(&h)
			if body == nil {
				body = b.im.Memory(x.Range)
			}
			return transport.AppendFrame(nil, h, body)
		}
	}
	for _, c := range []struct {
		name string
		msg  func(b *batch, x transport.Fetch) []byte
		want string
	}{
		{"damaged", func(b *batch, x transport.Fetch) []byte { m := b.frame(x); m[9000] ^= 4; return m }, "damaged on the way"},
		{"truncated", func(b *batch, x transport.Fetch) []byte { m := b.frame(x); return m[:len(m)-1] }, "has PAGES with a body of 16384"},
		{"too long", func(b *batch, x transport.Fetch) []byte { return append(b.frame(x), 0) }, "has PAGES with a body of 16384"},
		{"no header", func(*batch, transport.Fetch) []byte { return make([]byte, 7) }, "header has 7 bytes"},
		{"not pages", func(_ *batch, x transport.Fetch) []byte {
			return transport.AppendFrame(nil, transport.Header{Type: transport.TypeRefuse, ID: x.ID, Aux: 7}, nil)
		}, "a message with REFUSE"},
		{"unasked", edit(func(h *transport.Header) { h.ID = 77 }, nil), "fetch 77, which is not outstanding"},
		{"other range", edit(func(h *transport.Header) { h.First = 9 }, nil), "answers fetch"},
		{"bomb", edit(func(h *transport.Header) { h.Flags = 1 }, []byte{0xff, 0xff, 0xff, 0x7f, 1, 2}), "want 16384"},
		{"not zstd", edit(func(h *transport.Header) { h.Flags = 2 }, make([]byte, 5000)), "zstd header"},
		{"extents past the body", edit(func(h *transport.Header) { h.Aux = 4 }, make([]byte, 20)), "4 extents in a body"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBatch(t, 64, rigOptions{})
			got := make(chan transport.Fetch, 8)
			go func() {
				defer close(got)
				buf := make([]transport.Fetch, 8)
				for {
					n, err := b.resp.Next(buf)
					if err != nil {
						return
					}
					for _, f := range buf[:n] {
						got <- f
					}
				}
			}()
			await(t, "answers by SEND", b.b.Up)
			b.post(4, 4, 4)
			x := <-got
			b.say(c.msg(b, x))
			done := make(chan error, 1)
			go func() { // what is fetched again
				again := <-got
				if again.Range != x.Range || again.ID == x.ID {
					done <- errors.New("another fetch than the one that is due")
					return
				}
				done <- b.im.Answer(b.resp, again, false)
			}()
			b.receive(1)
			if err := <-done; err != nil {
				t.Error(err)
			}
			b.fell(c.want)
			b.sink.Check(t, b.im, transport.Range{Region: 1, First: 4, Count: 4})
			if n, held := b.sink.Counts(); n != 4 || held != 0 {
				t.Errorf("%d pages are resident, %d reserved", n, held)
			}
			if s := b.b.Stats(); s.Recalled.Load() != 1 || s.Beneath.Load() != 1 || s.Messages.Load() != 0 {
				t.Errorf("%d fetched again, %d by the connection, %d messages", s.Recalled.Load(), s.Beneath.Load(), s.Messages.Load())
			}
			// A late answer to the first fetch is no breach, and changes nothing.
			if err := b.im.Answer(b.resp, x, false); err != nil {
				t.Error(err)
			}
			b.post(8, 4, 4)
			if err := b.im.Answer(b.resp, <-got, false); err != nil {
				t.Error(err)
			}
			b.receive(1)
			b.sink.Check(t, b.im, transport.Range{Region: 1, First: 4, Count: 8})
		})
	}
}

// A message twice, and one that is longer than any buffer.
func TestBatchTwice(t *testing.T) {
	b := newBatch(t, 64, rigOptions{})
	b.serve()
	b.receive(b.post(0, 4, 4))
	b.say(b.frame(transport.Fetch{ID: b.id, Range: transport.Range{Region: 1, Count: 4}}))
	b.receive(b.post(4, 60, 4))
	await(t, "the end of RDMA", func() bool { b.receive(b.post(0, 4, 4)); return !b.b.Up() })
	b.fell("which is not outstanding")
	b.whole(64)
}

func TestBatchOversized(t *testing.T) {
	b := newBatch(t, 512, rigOptions{})
	b.serve()
	b.receive(b.post(0, 64, 16))
	s := b.a.s
	s.mu.Lock()
	m := slot{id: uint64(len(s.free)), local: addressOf(s.mem), length: uint32(s.most + 1), lkey: s.mr.lkey}
	m.id = 0
	err := s.q.send(&m)
	s.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	b.receive(b.post(64, 448, 16))
	b.fell("a message was not received")
	b.whole(512)
}

// A destination that asks for more than it has buffers for: the source does not wait
// for one, and all comes by the connection.
func TestBatchNotReady(t *testing.T) {
	b := newBatch(t, 512, rigOptions{})
	b.serve()
	b.b.base.Invite(64)
	n := b.post(0, 512, 8) // 64 answers, 32 buffers, and nobody receives yet
	select {
	case err := <-b.trouble:
		if !strings.Contains(err.Error(), "RNR") {
			t.Errorf("the source ended SEND because of %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the source did not find out")
	}
	b.receive(n)
	b.fell("SEND failed")
	b.whole(512)
}

// The source's queue pair goes away in mid-stream.
func TestBatchGone(t *testing.T) {
	b := newBatch(t, 4096, rigOptions{fetch: FetchOptions{DeadAfter: 2 * time.Second}})
	b.serve()
	b.receive(b.post(0, 1024, 32))
	n := b.post(1024, 2048, 32)
	b.a.off()
	b.receive(n)
	// Those sent before it came, those after it came by the connection; what was under
	// way was fetched again, if there was any.
	b.receive(b.post(3072, 1024, 32))
	b.whole(4096)
	if s := b.b.Stats(); s.Messages.Load() == 0 || s.Beneath.Load() == 0 {
		t.Errorf("%d answers by SEND, %d by the connection", s.Messages.Load(), s.Beneath.Load())
	}
}

// With the policy to wait, the channel ends with RDMA; nothing of it is lost.
func TestBatchWaits(t *testing.T) {
	b := newBatch(t, 1024, rigOptions{fetch: FetchOptions{Only: true}})
	n := b.post(0, 512, 8) // twice as many as there are buffers, before it is up
	if left := b.b.Outstanding(nil); len(left) != n {
		t.Errorf("%d fetches are outstanding, want %d", len(left), n)
	}
	b.serve()
	b.receive(n)
	if s := b.b.Stats(); s.Beneath.Load() != 0 || s.Messages.Load() != uint64(n) {
		t.Errorf("%d answers by the connection, %d by SEND", s.Beneath.Load(), s.Messages.Load())
	}
	b.b.breakDown(errors.New("a whim of the test's"))
	n = b.post(512, 512, 8)
	var c transport.Completion
	if err := b.b.Receive(b.sink, &c); err == nil || !strings.Contains(err.Error(), "a whim") {
		t.Errorf("the channel ended with %v", err)
	}
	b.fell("a whim")
	if left := b.b.Outstanding(nil); len(left) != n {
		t.Errorf("%d fetches are outstanding, want all %d", len(left), n)
	}
	b.sink.Check(t, b.im, transport.Range{Region: 1, Count: 512})
}

// The link goes down in mid-stream.
func TestBatchLinkDown(t *testing.T) {
	link, err := netlink.LinkByName(softroce.Netdev)
	if err != nil {
		t.Fatal(err)
	}
	b := newBatch(t, 4096, rigOptions{})
	b.serve()
	b.receive(b.post(0, 1024, 32))
	n := b.post(1024, 3072, 32)
	up := linkDown(t, link, b.b.dev)
	defer up()
	b.receive(n)
	await(t, "the end of RDMA", func() bool {
		b.receive(b.post(0, 32, 32)) // whole pages that are dropped; it has Receive look
		return !b.b.Up()
	})
	b.fell("port error")
	b.whole(4096)
}

// Nothing is left of channels with answers by SEND.
func TestBatchLeaks(t *testing.T) {
	before := resources(t)
	for range 10 {
		t.Run("session", func(t *testing.T) {
			b := newBatch(t, 64, rigOptions{})
			b.serve()
			b.receive(b.post(0, 64, 8))
		})
	}
	after := resources(t)
	for name, n := range after {
		if n != before[name] {
			t.Errorf("%d %s objects after 10 sessions, %d before", n, name, before[name])
		}
	}
}
