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
	"github.com/pagewarp/pagewarp/pageserver"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/rdma"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// reader is a page server whose image can be read by RDMA, and the way to it.
type reader struct {
	*server
	export *rdma.Export
	dst    *rdma.Device
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
	r := &reader{attached: make(map[*tcp.Conn]*rdma.Attachment), dst: openDevice(t)}
	var err error
	r.export, err = rdma.NewExport(openDevice(t), []rdma.Source{{Region: region(img.pages), Path: fmt.Sprintf("/proc/self/fd/%d", img.fd)}}, rdma.ExportOptions{Pin: pin})
	must(t, err)
	t.Cleanup(func() { must(t, r.export.Close()) })
	r.server = newServer(t, img, "unix:"+t.TempDir()+"/none", tcp.Tuning{}) // its image; channels come below
	return r
}

// open is a [faultd.Opener]: a socket pair's source end is served here.
func (r *reader) open(t *testing.T, pages uint64) faultd.Opener {
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
	regions := []transport.Region{region(pages)}
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
		o := rdma.FetchOptions{StageBytes: 2 << 20, MaxCount: c.MaxCount(), Spin: rdma.DefaultSpin, Stats: &r.reads, Down: func(error) { r.downs.Add(1) }}
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

// TestRDMADrain brings a process's memory over by READs while it touches all of
// it, bit for bit; meanwhile the channels are left alone, cut, or lose RDMA.
func TestRDMADrain(t *testing.T) {
	const pages = 16384 // 64 MiB
	img := newImage(t, pages, 3)
	for _, c := range []struct {
		name  string
		pin   rdma.Pin
		batch bool
		hurt  func(*reader)
	}{
		{"undisturbed", rdma.PinLazy, false, func(*reader) {}},
		{"pinned at the freeze", rdma.PinAll, false, func(*reader) {}},
		{"connections cut", rdma.PinLazy, false, (*reader).cutAll},
		{"RDMA lost", rdma.PinLazy, false, (*reader).lose},
		{"connections with SEND cut", rdma.PinLazy, true, (*reader).cutAll},
		{"SEND lost", rdma.PinLazy, true, (*reader).lose},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := withDeadline(t, 60*time.Second)
			m := newMachine(t, ctx, pages, false)
			r := newReader(t, img, c.pin)
			r.batch = c.batch
			e := start(t, m.config(r.open(t, pages)))
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
			t.Logf("%d pages by demand, %d by precache, %d zero; %d READs of %d bytes, %d fetches beneath; the page server was asked %d times; RDMA ended %d times",
				s.PagesDemand, s.PagesPrecache, s.PagesZero, reads, r.reads.Bytes.Load(), r.reads.Beneath.Load(), r.stats.Fetches.Load(), r.downs.Load())
			messages := r.reads.Messages.Load()
			t.Logf("%d answers by SEND of %d bytes, %d fetches sent again", messages, r.reads.MessageBytes.Load(), r.reads.Recalled.Load())
			if reads == 0 || c.batch != (messages > 0) {
				t.Errorf("%d READs, %d answers by SEND", reads, messages)
			}
			if n, lost := r.reads.Posted.Load(), r.reads.Retried.Load(); reads > n || n > reads+lost {
				t.Errorf("%d READs posted, %d completed, %d went by FETCH", n, reads, lost)
			}
		})
	}
}
