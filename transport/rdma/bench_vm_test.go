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

	"github.com/pagewarp/pagewarp/internal/sched"
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

// Lend implements [transport.LendSink].
func (*blind) Lend(r transport.Range) (uint32, transport.Lending) { return r.Count, transport.Lent }
func (*blind) Landed(transport.Range, bool) error                 { return nil }
func (*blind) Reclaim(transport.Range)                            {}

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

// benchStream is a channel over an image of one registered chunk at most, whose pages
// land in place or in the staging buffer.
func benchStream(b *testing.B, kind transport.Kind, pages uint64, fetch FetchOptions, place bool) (*rig, *blind) {
	reg := transport.Region{ID: 1, Name: "ram", Pages: pages, PageSize: pageSize}
	im := transporttest.NewImage(b, reg)
	for p := range pages {
		im.Put(1, p, transporttest.Random, 1)
	}
	sink, dev := &blind{mem: transporttest.Memory(b, int(pages)*pageSize)}, testDevice(b)
	if place {
		var err error
		fetch.Landing, err = NewLanding(dev, []Stretch{{transport.Range{Region: 1, Count: uint32(pages)}, sink.mem}}, LandingOptions{})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { fetch.Landing.Close() })
		<-fetch.Landing.Done()
	}
	r := newRig(b, rigOptions{kind: kind, regions: im.Regions, sources: imageFiles(b, im), dstDev: dev, fetch: fetch,
		hello: transport.Hello{Features: transport.AllFeatures &^ transport.FeatureWarm}})
	resp, err := r.src.Responder()
	if err != nil {
		b.Fatal(err)
	}
	go im.Serve(resp, true) // ends with the channel
	r.ready(b)
	r.f.sink.bind(sink)
	return r, sink
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

// benchWay is a channel whose pages land in one way, and its figures.
type benchWay struct {
	name                string
	r                   *rig
	sink                *blind
	id                  uint64
	ours, posting, rest figure
}

// asInTheDaemon gives the runtime as many Ps as pagewarpd does (spareProcessors there), and a
// monitor that wakes as rarely (faultd.Tune). With as many Ps as there are CPUs a thread
// that comes back from ibv_post_send, which takes soft-RoCE long, has lost its own.
func asInTheDaemon(b *testing.B) {
	runtime.LockOSThread()
	old := runtime.GOMAXPROCS(runtime.NumCPU() + 6)
	b.Cleanup(func() { runtime.GOMAXPROCS(old) })
	if err := sched.QuietMonitor(sched.Monitor); err != nil {
		b.Fatal(err)
	}
}

// benchWays are channels of each way that there is for a kind of channel.
func benchWays(b *testing.B, kind transport.Kind, pages uint64, spin time.Duration) (ws []*benchWay) {
	for _, way := range []struct {
		name  string
		place bool
		lent  int
	}{{"by the staging buffer", false, 0}, {"in place, at most 128 KiB", true, LentBytes}, {"by the link's rate", true, 0}} {
		if kind == transport.Demand && way.place && way.lent == 0 {
			continue // it has no bound
		}
		w := &benchWay{name: way.name}
		w.r, w.sink = benchStream(b, kind, pages, FetchOptions{Spin: spin, LentBytes: way.lent}, way.place)
		ws = append(ws, w)
	}
	return ws
}

// counted checks that all came by READ.
func (w *benchWay) counted(b *testing.B, least uint64) {
	b.Helper()
	reads, _, beneath := counts(w.r.f)
	if reads < least || beneath != 0 || (w.r.f.Stats().InPlace.Load() > 0) != (w.r.f.opt.Landing != nil) {
		b.Fatalf("%s: %d READs, %d pages in place, %d fetches beneath", w.name, reads, w.r.f.Stats().InPlace.Load(), beneath)
	}
}

// BenchmarkDemand alternates 4 KiB fetches with ib_read_lat: the goal is 1.25 times
// its typical time. A ratio is that of one round, whose sides are seconds apart. The
// thread that fetches polls for the page, as a fault reader does.
func BenchmarkDemand(b *testing.B) {
	asInTheDaemon(b)
	const rounds, fetches, pages = 15, 500, 512
	ways := benchWays(b, transport.Demand, pages, time.Millisecond)
	var floor, shim figure
	var c transport.Completion
	var took, fetched, landing [fetches]float64
	for range rounds {
		lat := perftest(b, "ib_read_lat", "-s", "4096", "-n", strconv.Itoa(fetches))[4]
		floor.add(lat, lat)
		for i := range took {
			took[i] = float64(bare(b, ways[0].r.f, 1, pageSize, pageSize)) / 1e3
		}
		mid, _, _ := median(took[:])
		shim.add(mid, lat)
		for _, w := range ways {
			for i := range took {
				w.id++
				begin := time.Now()
				if err := w.r.f.FetchAndPoll([]transport.Fetch{{ID: w.id, Range: transport.Range{Region: 1, First: w.id % pages, Count: 1}}}); err != nil {
					b.Fatal(err)
				}
				fetched[i] = float64(time.Since(begin)) / 1e3
				if !w.r.f.Poll(&c) {
					if err := w.r.f.Receive(w.sink, &c); err != nil {
						b.Fatal(err)
					}
				}
				took[i], landing[i] = float64(time.Since(begin))/1e3, float64(c.Decode+c.Commit)/1e3
			}
			mid, _, _ = median(took[:])
			w.ours.add(mid, lat)
			mid, _, _ = median(fetched[:])
			w.posting.add(mid, lat)
			mid, _, _ = median(landing[:])
			w.rest.add(mid, lat)
		}
	}
	fmt.Printf("ib_read_lat, 4 KiB, typical: %v µs\n  by the shim alone: %v\n", &floor, &shim)
	for _, w := range ways {
		w.counted(b, rounds*fetches)
		fmt.Printf("  demand fetch, %s: %v\n    of which the posting: %v; copying and committing: %v\n", w.name, &w.ours, &w.posting, &w.rest)
	}
}

// BenchmarkPrecache alternates a stream with ib_read_bw at its best message size:
// the goal is 0.9 times its rate.
func BenchmarkPrecache(b *testing.B) {
	asInTheDaemon(b)
	const rounds, pages, run, window = 7, 6144, 32, 32
	ways := benchWays(b, transport.Precache, pages, 100*time.Microsecond)
	var floor, shim figure
	for range rounds {
		best := 0.0
		for _, size := range []string{"262144", "1048576"} {
			best = max(best, perftest(b, "ib_read_bw", "-s", size, "-n", "48")[3]) // MiB/s, average
		}
		floor.add(best, best)
		shim.add(16/bare(b, ways[0].r.f, precacheSlots, readBytes, 16<<20).Seconds(), best)
		for _, w := range ways {
			begin, landing := time.Now(), time.Duration(0)
			posted, got := uint64(0), uint64(0)
			var c transport.Completion
			for got < pages/run {
				for posted < pages/run && posted-got < window {
					w.id++
					if err := w.r.f.Fetch([]transport.Fetch{{ID: w.id, Range: transport.Range{Region: 1, First: posted * run, Count: run}}}); err != nil {
						b.Fatal(err)
					}
					posted++
				}
				if err := w.r.f.Receive(w.sink, &c); err != nil {
					b.Fatal(err)
				}
				landing += c.Decode + c.Commit
				got++
			}
			w.ours.add(float64(pages*pageSize)/(1<<20)/time.Since(begin).Seconds(), best)
			w.rest.add(float64(landing)/1e3/pages, 1)
		}
	}
	fmt.Printf("ib_read_bw at its best size: %v MiB/s\n  by the shim alone, 1 MiB READs: %v\n", &floor, &shim)
	for _, w := range ways {
		w.counted(b, rounds)
		reads, bytes, _ := counts(w.r.f)
		fmt.Printf("  precache %s, %d fetches of 128 KiB in flight: %v\n    landing, µs a page: %v; %d READs of %d KiB\n", w.name, window, &w.ours, &w.rest, reads, bytes/reads>>10)
	}
}
