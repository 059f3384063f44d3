//go:build rdmavm

package rdma

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/softroce"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"github.com/pagewarp/pagewarp/transport/transporttest"
	"golang.org/x/sys/unix"
)

var hostAddr = netip.MustParseAddr(softroce.IP)

func TestMain(m *testing.M) {
	if err := softroce.Make(); err != nil {
		fmt.Fprintln(os.Stderr, "make the RDMA device:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// testDevice opens the VM's device.
func testDevice(t testing.TB) *Device {
	t.Helper()
	port, gid, err := Choose("", hostAddr)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Open(port, gid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// rig is one channel with RDMA: the ends beneath, and what is on them.
type rig struct {
	dst, src *tcp.Conn
	f        *Fetcher
	b        *BatchFetcher // in its place, where answers come by SEND
	e        *Export
	a        *Attachment
	down     chan error // what the destination was told
	trouble  chan error // what the source was told
}

type rigOptions struct {
	kind    transport.Kind
	regions []transport.Region // as the destination believes
	sources []Source
	export  ExportOptions
	fetch   FetchOptions
	hello   transport.Hello
	dead    time.Duration
	faults  *transporttest.Faults
	codec   transport.CodecMode
	srcDev  *Device // nil: one of its own
	dstDev  *Device
	batch   bool // answers by SEND
	place   bool // pages land in the sink's memory
	byTime  bool // as many as the link's rate allows
}

func newRig(t testing.TB, o rigOptions) *rig {
	t.Helper()
	r := &rig{down: make(chan error, 4), trouble: make(chan error, 4)}
	if o.srcDev == nil {
		o.srcDev = testDevice(t)
	}
	if o.dstDev == nil {
		o.dstDev = testDevice(t)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tune := tcp.Tuning{DeadAfter: o.dead, Codec: o.codec, DemandCodec: o.codec}
	l, err := tcp.Listen("127.0.0.1:0", tcp.ListenOptions{Tuning: tune, Admit: func(transport.Hello, string) (transport.Offer, *transport.RemoteError) {
		return transport.Offer{Role: transport.Source, Features: transport.AllFeatures | transport.FeatureRDMA | transport.FeatureSend, MaxBody: o.hello.MaxBody, MaxCount: o.hello.MaxCount}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan error, 1)
	go func() {
		var err error
		r.src, err = l.Accept(ctx)
		got <- err
	}()
	h := o.hello
	h.Kind, h.Role, h.Token = o.kind, transport.Destination, transport.NewToken()
	h.Features |= transport.FeatureRDMA
	if o.batch {
		h.Features |= transport.FeatureSend
	}
	addr := l.Addr().String()
	if o.faults != nil {
		addr = transporttest.Relay(t, addr, o.faults)
	}
	if r.dst, err = tcp.Dial(ctx, addr, tcp.Options{Hello: h, Tuning: tune}); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	r.dst.SetRegions(o.regions)
	o.export.Report = func(err error) { r.trouble <- err }
	if r.e, err = NewExport(o.srcDev, o.sources, o.export); err != nil {
		t.Fatal(err)
	}
	r.a = r.e.Attach(r.src)
	base, err := r.dst.Fetcher()
	if err != nil {
		t.Fatal(err)
	}
	o.fetch.Down = func(err error) { r.down <- err }
	o.fetch.MaxCount = r.dst.MaxCount()
	if o.fetch.DeadAfter == 0 {
		o.fetch.DeadAfter = o.dead
	}
	var f transport.Fetcher
	if o.batch {
		r.b, err = NewBatchFetcher(o.dstDev, base, r.dst, o.regions, o.fetch)
		f = r.b
	} else {
		r.f, err = NewFetcher(o.dstDev, base, r.dst, o.regions, o.fetch)
		f = r.f
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		r.src.Close()
		r.a.Close()
		if err := r.e.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// imageFiles writes an image of the suite to files that can be exported.
func imageFiles(t testing.TB, im *transporttest.Image) []Source {
	t.Helper()
	dir := t.TempDir() // /tmp is a tmpfs in the VM
	var out []Source
	for _, reg := range im.Regions {
		path := filepath.Join(dir, reg.Name)
		size := int64(reg.Pages) * int64(reg.PageSize)
		fd, err := sysmem.CreateFile(path, size)
		if err != nil {
			t.Fatal(err)
		}
		ps := int(reg.PageSize)
		mem := im.Memory(transport.Range{Region: reg.ID, Count: uint32(reg.Pages)})
		for i := range int(reg.Pages) {
			if p := mem[i*ps : (i+1)*ps]; !isZero(p) {
				if _, err := unix.Pwrite(fd, p, int64(i*ps)); err != nil {
					t.Fatal(err)
				}
			}
		}
		unix.Close(fd)
		out = append(out, Source{Region: reg, Path: path})
	}
	return out
}

// counts are the READs that completed, their bytes, and the fetches that were
// answered by the channel beneath.
func counts(f *Fetcher) (reads, bytes, beneath uint64) {
	s := f.Stats()
	return s.Completed.Load(), s.Bytes.Load(), s.Beneath.Load()
}

// harness opens channels for the suite.
type harness struct {
	spin     time.Duration
	pin      Pin
	alias    bool    // pages land in place
	src, dst *Device // of all channels of a case
}

func (*harness) OneSided() {}

func (h *harness) Pair(t testing.TB, o transporttest.Options) (transport.Fetcher, transport.Responder) {
	var sources []Source
	if o.Image != nil {
		sources = imageFiles(t, o.Image)
	}
	fetch := FetchOptions{Spin: h.spin, StageBytes: 2 << 20}
	if h.alias && o.Sink != nil && o.Image != nil {
		fetch.Landing, fetch.LentBytes = landingOf(t, h.dst, o.Sink), LentBytes
	}
	r := newRig(t, rigOptions{kind: o.Kind, srcDev: h.src, dstDev: h.dst, regions: o.Regions, sources: sources, export: ExportOptions{Pin: h.pin},
		fetch: fetch, dead: o.DeadAfter, faults: o.Faults, codec: o.Codec,
		hello: transport.Hello{Features: o.Features, MaxBody: o.MaxBody, MaxCount: o.MaxCount, Index: o.Index}})
	resp, err := r.src.Responder()
	if err != nil {
		t.Fatal(err)
	}
	if fetch.Landing != nil {
		r.f.sink.bind(o.Sink) // or the first READs would be posted before it is known
	}
	if o.Image == nil {
		return r.f, resp
	}
	t.Cleanup(func() {
		if _, _, beneath := counts(r.f); fetch.Landing != nil && beneath == 0 && r.f.Stats().InPlace.Load() == 0 && r.f.Stats().Bytes.Load() >= minPlot {
			t.Error("nothing was in place")
		}
		if _, _, beneath := counts(r.f); beneath != 0 {
			t.Errorf("%d fetches were answered by the channel beneath", beneath)
		}
	})
	return &upFirst{Fetcher: r.f, r: r, t: t}, resp
}

// upFirst holds the first Fetch until RDMA is up and all is mapped: before, it
// would be the channel beneath that is tested. It notes how pages came.
type upFirst struct {
	*Fetcher
	r    *rig
	t    testing.TB
	once sync.Once
}

func (u *upFirst) Fetch(fs []transport.Fetch) error {
	u.once.Do(func() { u.r.ready(u.t) })
	return u.Fetcher.Fetch(fs)
}

// ready waits until everything can be read.
func (r *rig) ready(t testing.TB) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	asked := false
	for !r.f.closed.Load() {
		r.f.mu.Lock()
		whole := r.f.q != nil
		for id, reg := range r.f.table.regions {
			for c, s := range reg.states {
				switch {
				case s == unknown && !asked:
					if whole = false; !r.f.table.ask(reg, uint64(c)) {
						continue
					}
					r.f.asks.push(ask{id, uint64(c) * reg.unit})
				case s != mapped:
					whole = false
				}
			}
		}
		asked = asked || r.f.q != nil
		r.f.mu.Unlock()
		if whole && asked {
			await(t, "the first READ", func() bool {
				_, err := r.f.poll(0)
				r.f.mu.Lock()
				defer r.f.mu.Unlock()
				return r.f.proof != probing || err != nil || r.f.closed.Load()
			})
			return
		}
		if err := r.f.send(); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("RDMA does not come up")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSuiteLazy(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) transporttest.Harness {
		return &harness{src: testDevice(t), dst: testDevice(t)}
	})
}

// landingOf has the memory of a sink ready for READs in place.
func landingOf(t testing.TB, d *Device, s *transporttest.Sink) *Landing {
	t.Helper()
	var to []Stretch
	s.EachRegion(func(r transport.Range, mem []byte) { to = append(to, Stretch{r, mem}) })
	l, err := NewLanding(d, to, LandingOptions{Report: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	<-l.Done()
	return l
}

// TestSuiteInPlace has pages land in the sink's memory, from an image that is all pinned.
func TestSuiteInPlace(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) transporttest.Harness {
		return &harness{alias: true, spin: 50 * time.Microsecond, pin: PinAll, src: testDevice(t), dst: testDevice(t)}
	})
}
