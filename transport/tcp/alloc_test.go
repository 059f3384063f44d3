package tcp

import (
	"testing"

	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/transporttest"
)

// blindSink takes everything into one piece of memory, without bookkeeping.
type blindSink struct {
	mem []byte
	ps  int
}

func (s *blindSink) Reserve(r transport.Range, dst [][]byte) {
	for i := range dst {
		off := (int(r.First) + i) * s.ps
		dst[i] = s.mem[off : off+s.ps]
	}
}
func (*blindSink) Commit(transport.Range, [][]byte) error { return nil }
func (*blindSink) Abort(transport.Range, [][]byte)        {}
func (*blindSink) Zero(transport.Range) error             { return nil }

// TestNoAllocation counts what a whole fetch costs, at both ends together: no
// allocation per page or per answer once the buffers have grown.
func TestNoAllocation(t *testing.T) {
	const pages = 512
	reg := transport.Region{ID: 1, Name: "ram", Pages: pages, PageSize: 4096}
	plain := transporttest.NewImage(t, reg)
	for p := range uint64(pages) {
		plain.Put(1, p, transporttest.Text, 1)
	}
	for _, c := range []struct {
		name  string
		h     *harness
		kind  transport.Kind
		codec transport.CodecMode
		count uint32
		max   float64
	}{
		{"demand", &harness{addr: "127.0.0.1:0"}, transport.Demand, transport.ModeNone, 1, 0},
		{"demand blocking", &harness{addr: "127.0.0.1:0", tune: Tuning{BlockingIO: true}}, transport.Demand, transport.ModeNone, 1, 0},
		{"precache raw", &harness{addr: "127.0.0.1:0"}, transport.Precache, transport.ModeNone, pages, 0},
		{"precache unix", &harness{addr: "unix:"}, transport.Precache, transport.ModeNone, pages, 0},
		{"precache s2", &harness{addr: "127.0.0.1:0"}, transport.Precache, transport.ModeS2, pages, 0},
		{"precache zstd", &harness{addr: "127.0.0.1:0"}, transport.Precache, transport.ModeZstd, pages, 4}, // per 2 MiB: the decoder's block bookkeeping
	} {
		t.Run(c.name, func(t *testing.T) {
			f, r := c.h.Pair(t, transporttest.Options{Kind: c.kind, Features: transport.AllFeatures, Codec: c.codec, Regions: plain.Regions})
			served := make(chan error, 1)
			go func() {
				buf := make([]transport.Fetch, 8)
				var a transport.Answer
				for {
					n, err := r.Next(buf)
					if err != nil {
						served <- err
						return
					}
					for _, q := range buf[:n] {
						a = transport.Answer{Fetch: q, Memory: plain.Memory(q.Range)}
						if err := r.Answer(&a); err != nil {
							served <- err
							return
						}
					}
				}
			}()
			sink := &blindSink{mem: make([]byte, pages*4096), ps: 4096}
			fs := []transport.Fetch{{ID: 1, Range: transport.Range{Region: 1, Count: c.count}}}
			var done transport.Completion
			once := func() {
				if err := f.Fetch(fs); err != nil {
					t.Fatal(err)
				}
				if err := f.Receive(sink, &done); err != nil {
					t.Fatal(err)
				}
			}
			warm, runs := 20, 100
			if c.count > 1 { // 2 MiB each, slow under the race detector
				warm, runs = 10, 30
			}
			for range warm {
				once()
			}
			if n := testing.AllocsPerRun(runs, once); n > c.max {
				t.Errorf("%.1f allocations per fetch of %d pages, want at most %v", n, c.count, c.max)
			}
			f.Close()
			<-served
			r.Close()
		})
	}
}
