package faultd_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/internal/uffd"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

const benchPages = 4000

// quantileUS returns quantile q of lat, in µs.
func quantileUS(lat []uint32, q float64) float64 {
	s := slices.Clone(lat)
	slices.Sort(s)
	return float64(s[min(len(s)-1, int(q*float64(len(s))))]) / 1e3
}

// localFloor is the time of a fault that is served from local memory by a
// thread that does nothing else.
func localFloor(b *testing.B) (p50, p99 float64) {
	ctx := withDeadline(b, 60*time.Second)
	p, err := touch.Start(ctx)
	must(b, err)
	defer p.Kill()
	n, err := p.Userfaultfd()
	must(b, err)
	u, err := uffd.Open(n)
	must(b, err)
	defer u.Close()
	_, err = u.API(uffd.FeatureMissingShmem | uffd.FeatureMinorShmem)
	must(b, err)
	fd, err := sysmem.CreateMemfd("floor", benchPages*pageSize, 0)
	must(b, err)
	defer unix.Close(fd)
	alias, err := sysmem.MapShared(fd, 0, benchPages*pageSize, true)
	must(b, err)
	defer sysmem.Unmap(alias)
	for i := 0; i < len(alias); i += pageSize {
		alias[i] = 1
	}
	reg, err := p.MapShared(fd, benchPages*pageSize)
	must(b, err)
	_, err = u.Register(reg.Addr, reg.Size, uffd.ModeMissing|uffd.ModeMinor)
	must(b, err)
	r, err := u.NewReader(uffd.ReaderConfig{})
	must(b, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		var evs [uffd.Batch]uffd.Event
		for {
			n, err := r.ReadEvents(evs[:])
			if err != nil {
				return
			}
			for _, ev := range evs[:n] {
				u.ContinueRange(ev.Addr&^(pageSize-1), pageSize, pageSize, 0)
			}
		}
	}()
	lat, err := reg.Touch(shuffled(benchPages, 1), false, 1)
	must(b, err)
	r.Stop()
	<-done
	must(b, r.Close())
	return quantileUS(lat, .5), quantileUS(lat, .99)
}

// roundTripFloor is the time of a request of 32 bytes and an answer of a page
// and a header, between two threads in blocking system calls.
func roundTripFloor(b *testing.B) (p50, p99 float64) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	defer ln.Close()
	blocking := func(c net.Conn) *os.File {
		f, err := c.(*net.TCPConn).File()
		must(b, err)
		must(b, c.Close())
		must(b, unix.SetNonblock(int(f.Fd()), false))
		return f
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		c, err := ln.Accept()
		if err != nil {
			return
		}
		f := blocking(c)
		defer f.Close()
		req, ans := make([]byte, 32), make([]byte, pageSize+transport.HeaderSize)
		for {
			if _, err := io.ReadFull(f, req); err != nil {
				return
			}
			if _, err := f.Write(ans); err != nil {
				return
			}
		}
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	must(b, err)
	f := blocking(c)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	req, ans := make([]byte, 32), make([]byte, pageSize+transport.HeaderSize)
	lat := make([]uint32, benchPages)
	for i := range lat {
		t0 := time.Now()
		_, err := f.Write(req)
		must(b, err)
		_, err = io.ReadFull(f, ans)
		must(b, err)
		lat[i] = uint32(time.Since(t0))
	}
	must(b, f.Close())
	<-done
	return quantileUS(lat, .5), quantileUS(lat, .99)
}

// BenchmarkDemandFault measures what a faulting thread sees, as a multiple of
// the floors taken just before: one local fault and one round trip.
func BenchmarkDemandFault(b *testing.B) {
	for _, tc := range []struct {
		name string
		pre  bool
		tune tcp.Tuning
		prio bool
		spin time.Duration
	}{
		{name: "idle/poller"},
		{name: "idle/blocking", tune: tcp.Tuning{BlockingIO: true}},
		{name: "idle/blocking-priority", tune: tcp.Tuning{BlockingIO: true}, prio: true},
		{name: "precache/poller", pre: true},
		{name: "precache/blocking", pre: true, tune: tcp.Tuning{BlockingIO: true}},
		{name: "precache/blocking-priority", pre: true, tune: tcp.Tuning{BlockingIO: true}, prio: true},
	} {
		b.Run(tc.name, func(b *testing.B) {
			pages := uint64(benchPages)
			if tc.pre {
				pages = 256 << 10
			}
			img := makeImage(b, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
			old := runtime.GOMAXPROCS(0)
			faultd.Tune(4)
			defer runtime.GOMAXPROCS(old)
			for b.Loop() {
				local, local99 := localFloor(b)
				rtt, rtt99 := roundTripFloor(b)
				ctx := withDeadline(b, 60*time.Second)
				srv := newServer(b, img, "127.0.0.1:0", tc.tune)
				m := newMachine(b, ctx, pages, false)
				cfg := m.config(srv.open(pages))
				cfg.BlockingDemand, cfg.Priority, cfg.PrecacheOff = tc.tune.BlockingIO, tc.prio, !tc.pre
				e := start(b, cfg)
				n := min(pages, benchPages)
				if tc.pre {
					n = 1000
				}
				before := rusage()
				lat, err := m.reg.Touch(shuffled(pages, 3)[:n], false, 1)
				must(b, err)
				after := rusage()
				if tc.pre {
					// Only what was fetched on demand counts, not what had come.
					lat = slices.DeleteFunc(lat, func(ns uint32) bool { return ns < 20000 })
				}
				floor := local + rtt
				s := e.Stats()
				b.ReportMetric(local, "local-floor-µs")
				b.ReportMetric(rtt, "rtt-floor-µs")
				b.ReportMetric(quantileUS(lat, .5), "p50-µs")
				b.ReportMetric(quantileUS(lat, .99), "p99-µs")
				b.ReportMetric(quantileUS(lat, .5)/floor, "p50/floor")
				b.ReportMetric(quantileUS(lat, .99)/floor, "p99/floor")
				b.ReportMetric((local99+rtt99)/floor, "floor-p99/floor")
				b.ReportMetric(float64(after-before)/float64(len(lat)), "switches/fault")
				b.Logf("faults %d, queue %.0f wire %.0f decode %.1f install %.1f total %.0f (p50 µs)", len(lat),
					s.Stages[faultd.StageQueue].Summary().P50, s.Stages[faultd.StageWire].Summary().P50,
					s.Stages[faultd.StageDecode].Summary().P50, s.Stages[faultd.StageInstall].Summary().P50, s.Stages[faultd.StageTotal].Summary().P50)
				e.Close()
			}
		})
	}
}

// rusage counts the voluntary context switches of this process, each of which
// is a thread that slept and was woken.
func rusage() int64 {
	var ru unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &ru) // cannot fail with these arguments
	return ru.Nvcsw
}

// streamFloor is one socket, write from a mapped file, read into a fresh mapped
// file, nothing else; in bytes a second.
func streamFloor(b *testing.B, img *image) float64 {
	size := int64(img.pages) * pageSize
	src, err := sysmem.MapShared(img.fd, 0, size, false)
	must(b, err)
	defer sysmem.Unmap(src)
	fd, err := sysmem.CreateMemfd("stream", size, 0)
	must(b, err)
	defer unix.Close(fd)
	dst, err := sysmem.MapShared(fd, 0, size, true)
	must(b, err)
	defer sysmem.Unmap(dst)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for p := src; len(p) > 0; {
			n, err := c.Write(p[:min(len(p), 1<<20)])
			if err != nil {
				return
			}
			p = p[n:]
		}
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	must(b, err)
	defer c.Close()
	t0 := time.Now()
	_, err = io.ReadFull(c, dst)
	must(b, err)
	return float64(size) / time.Since(t0).Seconds()
}

// BenchmarkPrecacheStream drains incompressible memory that nobody touches, as
// a share of the stream floor.
func BenchmarkPrecacheStream(b *testing.B) {
	const pages = 128 << 10
	img := makeImage(b, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	for _, channels := range []int{1, 2} {
		b.Run(map[int]string{1: "1-channel", 2: "2-channels"}[channels], func(b *testing.B) {
			for b.Loop() {
				floor := streamFloor(b, img)
				ctx := withDeadline(b, 60*time.Second)
				srv := newServer(b, img, "127.0.0.1:0", tcp.Tuning{})
				m := newMachine(b, ctx, pages, false)
				cfg := m.config(srv.open(pages))
				cfg.PrecacheChannels = channels
				e := start(b, cfg)
				must(b, e.Wait(ctx))
				rate := float64(pages*pageSize) / e.Stats().Drain.Seconds()
				b.ReportMetric(floor/1e9, "floor-GB/s")
				b.ReportMetric(rate/1e9, "GB/s")
				b.ReportMetric(rate/floor, "of-floor")
				s := e.Stats()
				b.Logf("wire %.0f decode %.0f install %.0f (p50 µs of %d fetches)", s.Stages[faultd.StagePrecacheWire].Summary().P50,
					s.Stages[faultd.StagePrecacheDecode].Summary().P50, s.Stages[faultd.StagePrecacheInstall].Summary().P50, s.PrecacheFetches)
				e.Close()
			}
		})
	}
}

// BenchmarkFetchSize is what a precache fetch costs beside its pages: the drain
// by fetches of so many pages. It is where pagecache.HotConfig.Gap comes from.
func BenchmarkFetchSize(b *testing.B) {
	const pages = 32 << 10
	img := makeImage(b, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	for _, batch := range []uint32{1, 4, 16, 64} {
		b.Run(fmt.Sprint(batch), func(b *testing.B) {
			for b.Loop() {
				ctx := withDeadline(b, 60*time.Second)
				srv := newServer(b, img, "127.0.0.1:0", tcp.Tuning{})
				m := newMachine(b, ctx, pages, false)
				cfg := m.config(srv.open(pages))
				cfg.PrecacheChannels, cfg.BatchPages = 2, batch
				e := start(b, cfg)
				must(b, e.Wait(ctx))
				s := e.Stats()
				b.ReportMetric(float64(s.Drain.Nanoseconds())/float64(s.PrecacheFetches)/1e3, "µs/fetch")
				b.ReportMetric(float64(s.Drain.Nanoseconds())/pages/1e3, "µs/page")
				e.Close()
			}
		})
	}
}
