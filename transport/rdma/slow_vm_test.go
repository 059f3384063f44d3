//go:build rdmavm

package rdma

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/softroce"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"github.com/pagewarp/pagewarp/transport/transporttest"
	"golang.org/x/sys/unix"
)

// BenchmarkSlowLink brings half-compressible memory over a link of a limited rate: by
// READ, by SEND and by TCP, with each codec. Every way has the same limit, of its own:
// soft-RoCE's packets on a veth pair, TCP's on lo.
func BenchmarkSlowLink(b *testing.B) {
	if err := softroce.Pair(); err != nil {
		b.Fatal(err)
	}
	open := func(name string) *Device {
		port, gid, err := Choose(name, netip.Addr{})
		if err != nil {
			b.Fatal(err)
		}
		d, err := Open(port, gid)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { d.Close() })
		return d
	}
	src, dst := open(softroce.PairSource), open(softroce.PairDestination)
	defer softroce.Limit(0)
	const pages, rounds = 2048, 3
	reg := transport.Region{ID: 1, Name: "ram", Pages: pages, PageSize: pageSize}
	im := transporttest.NewImage(b, reg)
	for p := range uint64(pages) {
		im.Put(1, p, transporttest.Random, p)
		clear(im.Memory(transport.Range{Region: 1, First: p, Count: 1})[pageSize/2:])
	}
	files := imageFiles(b, im)
	type way struct {
		by    string
		codec transport.CodecMode
	}
	var ways []way
	ways = append(ways, way{"READ", transport.ModeNone})
	for _, by := range []string{"SEND", "TCP"} {
		for _, m := range []transport.CodecMode{transport.ModeNone, transport.ModeS2, transport.ModeZstd, transport.ModeAuto} {
			ways = append(ways, way{by, m})
		}
	}
	for _, rate := range []uint64{2 << 20, 8 << 20, 0} {
		if err := softroce.Limit(rate); err != nil {
			b.Fatal(err)
		}
		results := make(map[way][]float64)
		cpu := make(map[way][]float64)
		for range rounds {
			for _, w := range ways {
				o := rigOptions{kind: transport.Precache, srcDev: src, dstDev: dst, regions: im.Regions, sources: files, codec: w.codec, batch: w.by == "SEND",
					fetch: FetchOptions{Spin: DefaultSpin}, hello: transport.Hello{Features: transport.AllFeatures &^ transport.FeatureWarm}}
				b.Run("pass", func(b *testing.B) {
					took, used := drain(b, im, w.by, o)
					results[w] = append(results[w], float64(pages*pageSize)/(1<<20)/took.Seconds())
					cpu[w] = append(cpu[w], float64(used.Microseconds())/pages)
				})
			}
		}
		for _, w := range ways {
			r, rl, rh := median(results[w])
			c, cl, ch := median(cpu[w])
			fmt.Printf("%d KiB/s, %s %v: %.2f (%.2f to %.2f) MiB/s of memory; CPU of both ends %.0f (%.0f to %.0f) µs a page\n", rate>>10, w.by, w.codec, r, rl, rh, c, cl, ch)
		}
	}
}

// drain fetches all of the image and returns how long that took, and the CPU time.
func drain(b *testing.B, im *transporttest.Image, by string, o rigOptions) (took, cpu time.Duration) {
	var f transport.Fetcher
	var resp transport.Responder
	var err error
	var r *rig
	if by == "TCP" {
		f, resp = plainPair(b, o)
	} else {
		r = newRig(b, o)
		f = r.b
		if by == "READ" {
			f = r.f
		}
		if resp, err = r.src.Responder(); err != nil {
			b.Fatal(err)
		}
	}
	go im.Serve(resp, true) // ends with the channel
	switch by {
	case "READ":
		r.ready(b)
	case "SEND":
		for !r.b.Up() {
			time.Sleep(time.Millisecond)
		}
	}
	const run, window = 32, 16
	pages := im.Regions[0].Pages
	sink := &blind{mem: transporttest.Memory(b, int(pages)*pageSize)}
	before, begin := processTime(b), time.Now()
	posted, got := uint64(0), uint64(0)
	for got < pages/run {
		for posted < pages/run && posted-got < window {
			if err := f.Fetch([]transport.Fetch{{ID: posted + 1, Range: transport.Range{Region: 1, First: posted * run, Count: run}}}); err != nil {
				b.Fatal(err)
			}
			posted++
		}
		var c transport.Completion
		if err := f.Receive(sink, &c); err != nil {
			b.Fatal(err)
		}
		got++
	}
	return time.Since(begin), processTime(b) - before
}

// plainPair is a channel without RDMA.
func plainPair(b *testing.B, o rigOptions) (transport.Fetcher, transport.Responder) {
	tune := tcp.Tuning{Codec: o.codec}
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
	defer cancel()
	l, err := tcp.Listen("127.0.0.1:0", tcp.ListenOptions{Tuning: tune, Admit: func(transport.Hello, string) (transport.Offer, *transport.RemoteError) {
		return transport.Offer{Role: transport.Source, Features: transport.AllFeatures}, nil
	}})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	h := o.hello
	h.Kind, h.Role, h.Token = o.kind, transport.Destination, transport.NewToken()
	dst, err := tcp.Dial(ctx, l.Addr().String(), tcp.Options{Hello: h, Tuning: tune})
	if err != nil {
		b.Fatal(err)
	}
	src, err := l.Accept(ctx)
	if err != nil {
		b.Fatal(err)
	}
	dst.SetRegions(o.regions)
	b.Cleanup(func() { dst.Close(); src.Close() })
	f, err := dst.Fetcher()
	if err != nil {
		b.Fatal(err)
	}
	r, err := src.Responder()
	if err != nil {
		b.Fatal(err)
	}
	return f, r
}

// processTime is the CPU time of this process, in the kernel and outside. What
// soft-RoCE does in the kernel's own threads is not in it.
func processTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
