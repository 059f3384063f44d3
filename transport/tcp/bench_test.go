package tcp

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/transporttest"
)

const batchPages = 512

func benchImage(b *testing.B) *transporttest.Image {
	im := transporttest.NewImage(b, transport.Region{ID: 1, Name: "ram", Pages: 8 * batchPages, PageSize: 4096})
	for p := range im.Regions[0].Pages {
		im.Put(1, p, transporttest.Content(2+p%3), 1)
	}
	return im
}

// BenchmarkStream moves 2 MiB batches over one loopback stream; its "floor" is
// a bare write from the same image and a bare read into the same memory.
func BenchmarkStream(b *testing.B) {
	b.Run("floor", func(b *testing.B) {
		im := benchImage(b)
		w, r := tcpPair(b)
		mem := im.Memory(transport.Range{Region: 1, Count: 8 * batchPages})
		sink := transporttest.Memory(b, len(mem))
		b.SetBytes(batchPages * 4096)
		go func() {
			for i := 0; ; i++ {
				off := i % 8 * batchPages * 4096
				if _, err := w.Write(mem[off : off+batchPages*4096]); err != nil {
					return
				}
			}
		}()
		for i := 0; b.Loop(); i++ {
			off := i % 8 * batchPages * 4096
			if _, err := io.ReadFull(r, sink[off:off+batchPages*4096]); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, c := range []struct {
		name  string
		h     func(b *testing.B) *harness
		codec transport.CodecMode
	}{
		{"raw", func(b *testing.B) *harness { return &harness{addr: "127.0.0.1:0"} }, transport.ModeNone},
		{"unix", func(b *testing.B) *harness { return &harness{addr: "unix:"} }, transport.ModeNone},
		{"tls", func(b *testing.B) *harness { return tlsHarness(b, Tuning{}) }, transport.ModeNone},
		{"s2", func(b *testing.B) *harness { return &harness{addr: "127.0.0.1:0"} }, transport.ModeS2},
		{"zstd", func(b *testing.B) *harness { return &harness{addr: "127.0.0.1:0"} }, transport.ModeZstd},
		{"auto", func(b *testing.B) *harness { return &harness{addr: "127.0.0.1:0"} }, transport.ModeAuto},
	} {
		b.Run(c.name, func(b *testing.B) {
			im := benchImage(b)
			f, r := c.h(b).Pair(b, transporttest.Options{Kind: transport.Precache, Features: transport.AllFeatures, Codec: c.codec, Regions: im.Regions})
			served := make(chan error, 1)
			go func() { served <- im.Serve(r, false) }()
			sink := &blindSink{mem: transporttest.Memory(b, 8*batchPages*4096), ps: 4096}
			b.SetBytes(batchPages * 4096)
			id := uint64(0)
			next := func() {
				q := transport.Fetch{ID: id, Range: transport.Range{Region: 1, First: id % 8 * batchPages, Count: batchPages}}
				id++
				if err := f.Fetch([]transport.Fetch{q}); err != nil {
					b.Fatal(err)
				}
			}
			var done transport.Completion
			for range 4 { // the window
				next()
			}
			for b.Loop() {
				if err := f.Receive(sink, &done); err != nil {
					b.Fatal(err)
				}
				next()
			}
			f.Close()
			<-served
			r.Close()
		})
	}
}

// BenchmarkDemand is one page per round trip; its "floor" is 32 bytes one way
// and 4 KiB and a header the other over bare sockets.
func BenchmarkDemand(b *testing.B) {
	b.Run("floor", func(b *testing.B) {
		w, r := tcpPair(b)
		go func() {
			req, ans := make([]byte, 32), make([]byte, 4096+40)
			for {
				if _, err := io.ReadFull(w, req); err != nil {
					return
				}
				if _, err := w.Write(ans); err != nil {
					return
				}
			}
		}()
		req, ans := make([]byte, 32), make([]byte, 4096+40)
		for b.Loop() {
			if _, err := r.Write(req); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(r, ans); err != nil {
				b.Fatal(err)
			}
		}
	})
	block, spin := Tuning{BlockingIO: true}, Tuning{BlockingIO: true, Spin: 50 * time.Microsecond}
	for _, c := range []struct {
		name string
		h    func(b *testing.B) *harness
	}{
		{"poller", func(b *testing.B) *harness { return &harness{addr: "127.0.0.1:0"} }},
		{"blocking", func(b *testing.B) *harness { return &harness{addr: "127.0.0.1:0", tune: block} }},
		{"spin", func(b *testing.B) *harness { return &harness{addr: "127.0.0.1:0", tune: spin} }},
		{"unix-poller", func(b *testing.B) *harness { return &harness{addr: "unix:"} }},
		{"unix-blocking", func(b *testing.B) *harness { return &harness{addr: "unix:", tune: block} }},
		{"tls-poller", func(b *testing.B) *harness { return tlsHarness(b, Tuning{}) }},
		{"tls-blocking", func(b *testing.B) *harness { return tlsHarness(b, block) }},
		{"tls-spin", func(b *testing.B) *harness { return tlsHarness(b, spin) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			im := benchImage(b)
			f, r := c.h(b).Pair(b, transporttest.Options{Kind: transport.Demand, Features: transport.AllFeatures, Regions: im.Regions})
			served := make(chan error, 1)
			go func() { served <- im.Serve(r, false) }()
			sink := &blindSink{mem: transporttest.Memory(b, 8*batchPages*4096), ps: 4096}
			fs := make([]transport.Fetch, 1)
			var done transport.Completion
			id := uint64(0)
			for b.Loop() {
				fs[0] = transport.Fetch{ID: id, Range: transport.Range{Region: 1, First: id * 37 % 4096, Count: 1}}
				id++
				if err := f.Fetch(fs); err != nil {
					b.Fatal(err)
				}
				if err := f.Receive(sink, &done); err != nil {
					b.Fatal(err)
				}
			}
			f.Close()
			<-served
			r.Close()
		})
	}
}

func tcpPair(b *testing.B) (w, r net.Conn) {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		var err error
		w, err = ln.Accept()
		done <- err
	}()
	if r, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		b.Fatal(err)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { w.Close(); r.Close() })
	return w, r
}
