//go:build rdmavm

package faultd_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/softroce"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/pageserver"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/rdma"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// reader is a page server whose image can be read by RDMA, and the way to it.
type reader struct {
	*server
	reg    transport.Region
	export *rdma.Export
	dst    *rdma.Device
	land   *rdma.Landing // nil: READs land in staging buffers
	lent   int           // rdma.FetchOptions.LentBytes
	downs  atomic.Int32
	reads  rdma.Stats
	batch  bool // precache comes by SEND

	mu       sync.Mutex
	attached map[*tcp.Conn]*rdma.Attachment // guarded by mu
}

func openDevice(t *testing.T) *rdma.Device {
	t.Helper()
	must(t, softroce.Make())
	port, gid, err := rdma.Choose("", netip.MustParseAddr(softroce.IP))
	must(t, err)
	d, err := rdma.Open(port, gid)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

func newReader(t *testing.T, img *image, pin rdma.Pin) *reader {
	t.Helper()
	return newReaderOf(t, region(img.pages), img.fd, pin)
}

// newReaderOf serves a file as a region.
func newReaderOf(t *testing.T, reg transport.Region, fd int, pin rdma.Pin) *reader {
	t.Helper()
	r := &reader{reg: reg, lent: rdma.LentBytes, attached: make(map[*tcp.Conn]*rdma.Attachment), dst: openDevice(t)}
	var err error
	r.export, err = rdma.NewExport(openDevice(t), []rdma.Source{{Region: reg, Path: fmt.Sprintf("/proc/self/fd/%d", fd)}}, rdma.ExportOptions{Pin: pin})
	must(t, err)
	t.Cleanup(func() { must(t, r.export.Close()) })
	r.server = newServerOf(t, reg, fd, "unix:"+t.TempDir()+"/none", tcp.Tuning{}) // its image; channels come below
	return r
}

// open is a [faultd.Opener]: a socket pair's source end is served here.
func (r *reader) open(t *testing.T) faultd.Opener {
	ln, err := tcp.Listen("127.0.0.1:0", tcp.ListenOptions{Admit: func(transport.Hello, string) (transport.Offer, *transport.RemoteError) {
		return transport.Offer{Role: transport.Source, Features: transport.AllFeatures&^transport.FeatureWarm | transport.FeatureRDMA | transport.FeatureSend}, nil
	}})
	must(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		r.cutAll()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept(context.Background())
			if err != nil {
				return
			}
			resp, err := c.Responder()
			if err != nil {
				c.Close()
				continue
			}
			a := r.export.Attach(c)
			r.mu.Lock()
			r.attached[c] = a
			r.mu.Unlock()
			wg.Go(func() {
				pageserver.Serve(context.Background(), resp, r.im, pageserver.Options{Stats: &r.stats})
				a.Close()
				r.mu.Lock()
				delete(r.attached, c)
				r.mu.Unlock()
			})
		}
	})
	regions := []transport.Region{r.reg}
	return func(ctx context.Context, kind transport.Kind, index int) (transport.Fetcher, error) {
		c, err := tcp.Dial(ctx, ln.Addr().String(), tcp.Options{Hello: transport.Hello{
			Kind: kind, Role: transport.Destination, Index: uint16(index), Token: r.token,
			Features: transport.AllFeatures&^transport.FeatureWarm | transport.FeatureRDMA | transport.FeatureSend}})
		if err != nil {
			return nil, err
		}
		c.SetRegions(regions)
		base, err := c.Fetcher()
		if err != nil {
			return nil, err
		}
		o := rdma.FetchOptions{StageBytes: 2 << 20, MaxCount: c.MaxCount(), Spin: rdma.DefaultSpin, Stats: &r.reads, Landing: r.land, LentBytes: r.lent, Down: func(error) { r.downs.Add(1) }}
		if r.batch && kind == transport.Precache {
			f, err := rdma.NewBatchFetcher(r.dst, base, c, regions, o)
			if err != nil {
				return nil, err
			}
			return f, nil
		}
		f, err := rdma.NewFetcher(r.dst, base, c, regions, o)
		if err != nil {
			return nil, err
		}
		return f, nil
	}
}

// cutAll breaks all connections; lose takes RDMA away from them alone.
func (r *reader) cutAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.attached {
		go c.CloseWith(0, "")
	}
}

func (r *reader) lose() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.attached {
		a.Close()
	}
}

// place has READs of e's land in its memory, of which a part is reserved. It comes before
// the first channel.
func (r *reader) place(t *testing.T, e *faultd.Engine, runs ...transport.Range) {
	t.Helper()
	for _, run := range runs {
		if _, err := e.Reserve(run); err != nil {
			t.Fatal(err)
		}
	}
	var to []rdma.Stretch
	e.EachReserved(func(run transport.Range, mem []byte) { to = append(to, rdma.Stretch{Range: run, Memory: mem}) })
	var err error
	r.land, err = rdma.NewLanding(r.dst, to, rdma.LandingOptions{Report: func(err error) { t.Error(err) }})
	must(t, err)
	<-r.land.Done()
	t.Cleanup(func() {
		e.Close() // the channels, before their memory
		must(t, r.land.Close())
	})
}

// TestRDMADrain brings a process's memory over by READs while it touches all of
// it, bit for bit; meanwhile the channels are left alone, cut, or lose RDMA.
func TestRDMADrain(t *testing.T) {
	const pages = 8192 // 32 MiB
	img := newImage(t, pages, 3)
	most := []transport.Range{{Region: 7, Count: 4096}, {Region: 7, First: 4500, Count: 2000}}
	for _, c := range []struct {
		name  string
		pin   rdma.Pin
		batch bool
		hurt  func(*reader)
		place []transport.Range // what is reserved, to land in place
		lent  int               // how much of it precache may have under way
	}{
		{"undisturbed", rdma.PinLazy, false, func(*reader) {}, nil, 0},
		{"pinned at the freeze", rdma.PinAll, false, func(*reader) {}, most, rdma.LentBytes},
		{"by the link's rate", rdma.PinAll, false, func(*reader) {}, most, 0},
		{"connections cut", rdma.PinLazy, false, (*reader).cutAll, most, rdma.LentBytes},
		{"RDMA lost", rdma.PinLazy, false, (*reader).lose, most, rdma.LentBytes},
		{"connections with SEND cut", rdma.PinLazy, true, (*reader).cutAll, nil, 0},
		{"SEND lost", rdma.PinLazy, true, (*reader).lose, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := withDeadline(t, 60*time.Second)
			m := newMachine(t, ctx, pages, false)
			r := newReader(t, img, c.pin)
			r.batch, r.lent = c.batch, c.lent
			begun := make(chan struct{})
			e := start(t, m.config(heldOpen(begun, r.open(t))))
			if c.place != nil {
				r.place(t, e, c.place...)
			}
			close(begun)
			go func() {
				for i, p := range shuffled(pages, 9) {
					if i > 400 {
						break
					}
					if _, err := m.reg.Sums(p, 1); err != nil {
						return
					}
				}
			}()
			for s := e.Stats(); s.PagesLeft > pages*3/4 && ctx.Err() == nil; s = e.Stats() {
				time.Sleep(time.Millisecond)
			}
			c.hurt(r)
			s := drained(t, ctx, e)
			m.verify(t, img.sums)
			reads := r.reads.Completed.Load()
			t.Logf("%d pages by demand, %d by precache, %d zero; %d READs of %d bytes, %d pages in place, %d fetches beneath; the page server was asked %d times; RDMA ended %d times",
				s.PagesDemand, s.PagesPrecache, s.PagesZero, reads, r.reads.Bytes.Load(), r.reads.InPlace.Load(), r.reads.Beneath.Load(), r.stats.Fetches.Load(), r.downs.Load())
			messages := r.reads.Messages.Load()
			t.Logf("%d answers by SEND of %d bytes, %d fetches sent again", messages, r.reads.MessageBytes.Load(), r.reads.Recalled.Load())
			if reads == 0 || c.batch != (messages > 0) {
				t.Errorf("%d READs, %d answers by SEND", reads, messages)
			}
			if (r.reads.InPlace.Load() > 0) != (c.place != nil) {
				t.Errorf("%d pages were in place", r.reads.InPlace.Load())
			}
			if n, lost := r.reads.Posted.Load(), r.reads.Retried.Load(); reads > n || n > reads+lost {
				t.Errorf("%d READs posted, %d completed, %d went by FETCH", n, reads, lost)
			}
		})
	}
}

// TestRDMARemoved: the machine gives memory back, again and again, while READs land in
// it. What it gave back reads as zero or, if it was installed at that moment, as it was;
// nothing else does, and no page waits for ever.
func TestRDMARemoved(t *testing.T) {
	const pages = 4096
	ctx := withDeadline(t, 60*time.Second)
	img := makeImage(t, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	m := newMachineEvents(t, ctx, pages, false, true)
	r := newReader(t, img, rdma.PinAll)
	begun := make(chan struct{})
	e := start(t, m.config(heldOpen(begun, r.open(t))))
	r.place(t, e, transport.Range{Region: 7, Count: pages})
	close(begun)
	gone := make(map[uint64]bool)
	for p := uint64(pages - 32); p > 0 && e.Stats().PagesLeft > 0; p -= 32 { // towards precache
		must(t, m.reg.Advise(p, 16, unix.MADV_REMOVE))
		for i := range uint64(16) {
			gone[p+i] = true
		}
	}
	must(t, e.Wait(ctx))
	got, err := m.reg.Sums(0, pages)
	must(t, err)
	zero, zeros := touch.Sum(make([]byte, pageSize)), 0
	for i, sum := range got {
		if gone[uint64(i)] && sum == zero {
			zeros++
		} else if sum != img.sums[i] {
			t.Errorf("page %d is neither what it was nor, having been given back, zero", i)
		}
	}
	if n := r.reads.InPlace.Load(); n == 0 || zeros == 0 {
		t.Errorf("%d pages were in place, %d of those given back are zero", n, zeros)
	}
	t.Logf("%d pages given back, of which %d read as zero; %d in place", len(gone), zeros, r.reads.InPlace.Load())
}
