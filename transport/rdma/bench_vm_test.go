//go:build rdmavm

package rdma

import (
	"bytes"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/softroce"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/transporttest"
)

// blind is a sink without bookkeeping: what is measured is the transport.
type blind struct {
	mem []byte
}

func (s *blind) Reserve(r transport.Range, dst [][]byte) {
	for i := range dst {
		dst[i] = s.mem[(int(r.First)+i)*pageSize:][:pageSize]
	}
}
func (*blind) Commit(transport.Range, [][]byte) error { return nil }
func (*blind) Abort(transport.Range, [][]byte)        {}
func (*blind) Zero(transport.Range) error             { return nil }

// perftest runs a tool of perftest against itself and returns the columns of its
// last line of figures.
func perftest(b *testing.B, tool string, args ...string) []float64 {
	b.Helper()
	_, gid, err := Choose(softroce.Device, hostAddr)
	if err != nil {
		b.Fatal(err)
	}
	all := append([]string{"-d", softroce.Device, "-x", strconv.Itoa(gid.Index), "-F"}, args...)
	server := exec.Command("/usr/bin/"+tool, all...)
	var out bytes.Buffer
	server.Stdout, server.Stderr = &out, &out
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	defer server.Wait()
	var text []byte
	for try := 0; ; try++ {
		time.Sleep(300 * time.Millisecond) // the server gives no sign that it listens
		if text, err = exec.Command("/usr/bin/"+tool, append(all, softroce.IP)...).CombinedOutput(); err == nil {
			break
		}
		if try == 10 {
			server.Process.Kill()
			b.Fatalf("%s: %v\n%s\nserver: %s", tool, err, text, out.String())
		}
	}
	var figures []float64
	for line := range strings.Lines(string(text)) {
		var f []float64
		for word := range strings.FieldsSeq(line) {
			x, err := strconv.ParseFloat(word, 64)
			if err != nil {
				f = nil
				break
			}
			f = append(f, x)
		}
		if len(f) >= 4 {
			figures = f
		}
	}
	if figures == nil {
		b.Fatalf("%s printed no figures:\n%s", tool, text)
	}
	return figures
}

func median(xs []float64) (mid, low, high float64) {
	xs = slices.Sorted(slices.Values(xs))
	return xs[len(xs)/2], xs[0], xs[len(xs)-1]
}

func benchStream(b *testing.B, kind transport.Kind, pages uint64, spin time.Duration) (*rig, *blind) {
	reg := transport.Region{ID: 1, Name: "ram", Pages: pages, PageSize: pageSize}
	im := transporttest.NewImage(b, reg)
	for p := range pages {
		im.Put(1, p, transporttest.Random, 1)
	}
	r := newRig(b, rigOptions{kind: kind, regions: im.Regions, sources: imageFiles(b, im), fetch: FetchOptions{Spin: spin},
		hello: transport.Hello{Features: transport.AllFeatures &^ transport.FeatureWarm}})
	resp, err := r.src.Responder()
	if err != nil {
		b.Fatal(err)
	}
	go im.Serve(resp, true) // ends with the channel
	r.ready(b)
	return r, &blind{mem: transporttest.Memory(b, int(pages)*pageSize)}
}

// bare READs by the shim alone, window of them in flight, of size bytes each, until
// total bytes have come: what remains of the time is the Fetcher's.
func bare(b *testing.B, f *Fetcher, window, size, total int) time.Duration {
	b.Helper()
	f.mu.Lock()
	w, q := f.table.regions[1].windows[0][0], f.q
	f.mu.Unlock()
	spin := 100 * time.Millisecond
	var out [maxPost]done
	begin := time.Now()
	for posted, got := 0, 0; got < total; {
		for posted < total && posted-got < window*size {
			slot := posted / size % window
			at := posted % (int(w.count) * pageSize)
			if _, err := q.post([]read{{id: uint64(slot), local: addressOf(f.stage) + uint64(slot*size), remote: w.addr + uint64(at), length: uint32(size), lkey: f.stageMR.lkey, rkey: w.rkey}}); err != nil {
				b.Fatal(err)
			}
			posted += size
		}
		n, err := q.poll(out[:], spin)
		if err != nil {
			b.Fatal(err)
		}
		for _, d := range out[:n] {
			if d.status != 0 {
				b.Fatal(statusText(d.status))
			}
		}
		got += n * size
	}
	return time.Since(begin)
}

// figure is one quantity over the rounds, and its ratio to the floor of each.
type figure struct{ values, ratios []float64 }

func (f *figure) add(v, floor float64) {
	f.values, f.ratios = append(f.values, v), append(f.ratios, v/floor)
}

func (f *figure) String() string {
	v, vl, vh := median(f.values)
	r, rl, rh := median(f.ratios)
	return fmt.Sprintf("%.1f (%.1f to %.1f), %.2f times (%.2f to %.2f)", v, vl, vh, r, rl, rh)
}

// BenchmarkDemand alternates 4 KiB fetches with ib_read_lat: the goal is 1.25 times
// its typical time. A ratio is that of one round, whose two sides are a second apart.
func BenchmarkDemand(b *testing.B) {
	runtime.LockOSThread()
	const rounds, fetches, pages = 9, 500, 512
	r, sink := benchStream(b, transport.Demand, pages, time.Millisecond)
	var ours, floor, shim, posting figure
	var c transport.Completion
	id := uint64(0)
	var took, fetched [fetches]float64
	for range rounds {
		lat := perftest(b, "ib_read_lat", "-s", "4096", "-n", strconv.Itoa(fetches))[4]
		floor.add(lat, lat)
		for i := range took {
			took[i] = float64(bare(b, r.f, 1, pageSize, pageSize)) / 1e3
		}
		mid, _, _ := median(took[:])
		shim.add(mid, lat)
		for i := range took {
			id++
			begin := time.Now()
			if err := r.f.Fetch([]transport.Fetch{{ID: id, Range: transport.Range{Region: 1, First: id % pages, Count: 1}}}); err != nil {
				b.Fatal(err)
			}
			fetched[i] = float64(time.Since(begin)) / 1e3
			if err := r.f.Receive(sink, &c); err != nil {
				b.Fatal(err)
			}
			took[i] = float64(time.Since(begin)) / 1e3
		}
		mid, _, _ = median(took[:])
		ours.add(mid, lat)
		mid, _, _ = median(fetched[:])
		posting.add(mid, lat)
	}
	if reads, _, beneath := counts(r.f); reads != rounds*fetches || beneath != 0 {
		b.Fatalf("%d READs, %d fetches beneath", reads, beneath)
	}
	fmt.Printf("ib_read_lat, 4 KiB, typical: %v µs\n  by the shim alone: %v\n  demand fetch: %v\n    of which Fetch, the posting: %v; copying %.1f µs, installing %.1f µs (the last one)\n  the source answered 0 of %d\n",
		&floor, &shim, &ours, &posting, float64(c.Decode)/1e3, float64(c.Commit)/1e3, rounds*fetches)
}

// BenchmarkPrecache alternates a stream with ib_read_bw at its best message size:
// the goal is 0.9 times its rate.
func BenchmarkPrecache(b *testing.B) {
	runtime.LockOSThread()
	const rounds, pages, run, window = 7, 8192, 64, 16
	r, sink := benchStream(b, transport.Precache, pages, 100*time.Microsecond)
	var ours, floor, shim figure
	var landing time.Duration
	id := uint64(0)
	for range rounds {
		best := 0.0
		for _, size := range []string{"262144", "1048576"} {
			best = max(best, perftest(b, "ib_read_bw", "-s", size, "-n", "48")[3]) // MiB/s, average
		}
		floor.add(best, best)
		shim.add(16/bare(b, r.f, precacheSlots, readBytes, 16<<20).Seconds(), best)
		begin := time.Now()
		posted, got := uint64(0), uint64(0)
		var c transport.Completion
		for got < pages/run {
			for posted < pages/run && posted-got < window {
				id++
				if err := r.f.Fetch([]transport.Fetch{{ID: id, Range: transport.Range{Region: 1, First: posted * run, Count: run}}}); err != nil {
					b.Fatal(err)
				}
				posted++
			}
			if err := r.f.Receive(sink, &c); err != nil {
				b.Fatal(err)
			}
			landing += c.Decode + c.Commit
			got++
		}
		ours.add(float64(pages*pageSize)/(1<<20)/time.Since(begin).Seconds(), best)
	}
	reads, _, beneath := counts(r.f)
	if beneath != 0 {
		b.Fatalf("%d fetches beneath", beneath)
	}
	fmt.Printf("ib_read_bw at its best size: %v MiB/s\n  by the shim alone, 1 MiB READs: %v\n  precache, %d fetches of 256 KiB in flight: %v; landing %.1f µs a page; %d READs\n  the source answered 0 of %d fetches\n",
		&floor, &shim, window, &ours, float64(landing.Microseconds())/(rounds*pages), reads, rounds*pages/run)
}
