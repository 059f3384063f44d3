//go:build rdmavm

package rdma

import (
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/transporttest"
	"golang.org/x/sys/unix"
)

// stream is a served channel with an image behind it, of which half is fetched.
type stream struct {
	*rig
	t      *testing.T
	im     *transporttest.Image
	sink   *transporttest.Sink
	served chan error
	id     uint64
}

func newStream(t *testing.T, pages uint64, o rigOptions) *stream {
	t.Helper()
	reg := transport.Region{ID: 1, Name: "ram", Pages: pages, PageSize: pageSize}
	im := transporttest.NewImage(t, reg)
	im.Mix(1, 5)
	if o.regions == nil {
		o.regions = im.Regions
	}
	if o.kind == 0 {
		o.kind = transport.Precache
	}
	o.sources = imageFiles(t, im)
	o.fetch.StageBytes = 2 << 20
	o.hello.Features = transport.AllFeatures &^ transport.FeatureWarm
	s := &stream{t: t, im: im, sink: transporttest.NewSink(t, o.regions...), served: make(chan error, 1)}
	if o.place {
		o.dstDev = testDevice(t)
		o.fetch.Landing = landingOf(t, o.dstDev, s.sink)
		if !o.byTime {
			o.fetch.LentBytes = LentBytes
		}
	}
	s.rig = newRig(t, o)
	if o.place {
		s.f.sink.bind(s.sink)
	}
	resp, err := s.src.Responder()
	if err != nil {
		t.Fatal(err)
	}
	go func() { s.served <- im.Serve(resp, true) }()
	t.Cleanup(func() {
		s.f.Close()
		s.src.Close()
		<-s.served
	})
	return s
}

// post asks for pages in fetches of 64.
func (s *stream) post(first, pages uint64) (n int) {
	s.t.Helper()
	var fs []transport.Fetch
	for p := first; p < first+pages; p += 64 {
		s.id++
		fs = append(fs, transport.Fetch{ID: s.id, Range: transport.Range{Region: 1, First: p, Count: uint32(min(64, first+pages-p))}})
	}
	if err := s.f.Fetch(fs); err != nil {
		s.t.Fatal(err)
	}
	return len(fs)
}

func (s *stream) receive(n int) {
	s.t.Helper()
	var c transport.Completion
	for range n {
		if err := s.f.Receive(s.sink, &c); err != nil {
			s.t.Fatal(err)
		}
	}
}

// whole checks that the first pages have come, each once and as at the source.
func (s *stream) whole(pages uint64) {
	s.t.Helper()
	s.sink.Check(s.t, s.im, transport.Range{Region: 1, Count: uint32(pages)})
	if left := s.f.Outstanding(nil); len(left) != 0 {
		s.t.Errorf("outstanding at the end: %v", left)
	}
}

// sleeps checks that Receive takes no CPU while there is nothing to receive.
func (s *stream) sleeps() {
	s.t.Helper()
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			s.t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	received := make(chan error, 1)
	go func() {
		var c transport.Completion
		received <- s.f.Receive(s.sink, &c)
	}()
	const idle = 500 * time.Millisecond
	before := used()
	time.Sleep(idle) // what is looked at
	if took := used() - before; took > idle/4 {
		s.t.Errorf("%v of CPU time in %v without anything to receive", took, idle)
	}
	s.post(0, 1) // dropped: it is there
	if err := <-received; err != nil {
		s.t.Error(err)
	}
}

// fell waits for the word that RDMA is over.
func (s *stream) fell(words string) {
	s.t.Helper()
	select {
	case err := <-s.down:
		if !strings.Contains(err.Error(), words) {
			s.t.Errorf("RDMA ended because of %q, want %q in it", err, words)
		}
	case <-time.After(10 * time.Second):
		s.t.Fatal("nobody was told that RDMA is over")
	}
	if s.f.Up() {
		s.t.Error("RDMA is up still")
	}
	if _, _, beneath := counts(s.f); beneath == 0 {
		s.t.Error("nothing came by the channel beneath")
	}
}

// eachWay runs a test with pages that land in the staging buffer, and in place.
func eachWay(t *testing.T, f func(t *testing.T, o rigOptions)) {
	t.Run("staging", func(t *testing.T) { f(t, rigOptions{}) })
	t.Run("in place", func(t *testing.T) { f(t, rigOptions{place: true}) })
}

// spoil has the READs from now on be refused: their key is not the source's.
func (s *stream) spoil() {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	for _, w := range s.f.table.regions[1].windows {
		for i := range w {
			w[i].rkey ^= 0x5500
		}
	}
}

// On a link as slow as soft-RoCE's, precache begins in place and goes on by the staging
// buffer; demand stays in place.
func TestByTheRate(t *testing.T) {
	for kind, inPlace := range map[transport.Kind]bool{transport.Precache: false, transport.Demand: true} {
		t.Run(kind.String(), func(t *testing.T) {
			const pages = 4096
			s := newStream(t, pages, rigOptions{kind: kind, place: true, byTime: true})
			s.ready(t)
			s.receive(s.post(0, pages/2))
			before, read := s.f.Stats().InPlace.Load(), s.f.Stats().Bytes.Load()
			s.receive(s.post(pages/2, pages/2))
			more, bytes := s.f.Stats().InPlace.Load()-before, s.f.Stats().Bytes.Load()-read
			if before == 0 || (more > 0) != inPlace || inPlace && more*pageSize != bytes {
				t.Errorf("of %d bytes by READ %d pages were in place, %d before", bytes, more, before)
			}
			s.whole(pages)
		})
	}
}
