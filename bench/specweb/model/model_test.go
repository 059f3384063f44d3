package model

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func all(t *testing.T, f func(t *testing.T, w *Workload)) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			w, err := ByName(name)
			if err != nil {
				t.Fatal(err)
			}
			f(t, w)
		})
	}
}

// thinkShare is the share of requests with a think time before them: all but
// the first of a session and those that follow at once.
func thinkShare(w *Workload, share []float64, length float64) float64 {
	without := 1 / length
	for i := 1; i < len(share); i++ {
		if w.Pages[i].NoThink {
			without += share[i]
		}
	}
	return 1 - without
}

// The published figures have one decimal, so half of it is the tolerance.
func TestStationaryMixIsThePublishedOne(t *testing.T) {
	lengths := map[string]float64{Banking: 4.65, Ecommerce: 12.4, Support: 12.6}
	all(t, func(t *testing.T, w *Workload) {
		share, length := w.Stationary()
		byType := map[string]float64{}
		sum := 0.0
		for i, p := range share {
			byType[w.Pages[i].Type] += p
			sum += p
		}
		if math.Abs(sum-1) > 1e-9 {
			t.Errorf("shares add up to %g", sum)
		}
		for page, p := range byType {
			want, published := w.Mix[page]
			switch {
			case published && math.Abs(p-want) > 0.00051:
				t.Errorf("%s has %.2f %% of the requests, want %.1f", page, 100*p, 100*want)
			case !published && p > 0.0225:
				t.Errorf("%s has %.2f %% of the requests, want at most 2.2", page, 100*p)
			}
		}
		if len(byType) < len(w.Mix) {
			t.Errorf("%d types of page, %d are published", len(byType), len(w.Mix))
		}
		if want := lengths[w.Name]; math.Abs(length-want) > 0.05 {
			t.Errorf("a session has %.3f requests, want %.2f", length, want)
		}
		if got := thinkShare(w, share, length); math.Abs(got-w.ThinkShare) > 0.0005 {
			t.Errorf("%.2f %% of the requests have a think time, want %.2f", 100*got, 100*w.ThinkShare)
		}
	})
}

// A million drawn requests have the stationary mix, within 0.2 points: five
// standard deviations of the largest share.
func TestDrawnRequestsHaveTheMix(t *testing.T) {
	all(t, func(t *testing.T, w *Workload) {
		const n = 1_000_000
		r := rand.New(rand.NewPCG(1, 2))
		counts := make([]int, len(w.Pages))
		sessions, page := 1, 0
		for range n {
			counts[page]++
			if page = w.Next(page, r); page == End {
				sessions++
				page = 0
			}
		}
		share, length := w.Stationary()
		for i, c := range counts {
			if got := float64(c) / n; math.Abs(got-share[i]) > 0.002 {
				t.Errorf("%s has %.3f %% of the requests, want %.3f", w.Pages[i].Name, 100*got, 100*share[i])
			}
		}
		if got := float64(n) / float64(sessions); math.Abs(got-length) > 0.02*length {
			t.Errorf("a session has %.2f requests, want %.2f", got, length)
		}
	})
}

func TestThinkTimes(t *testing.T) {
	all(t, func(t *testing.T, w *Workload) {
		r := rand.New(rand.NewPCG(3, 4))
		const n, scale = 200_000, 0.1
		var sum, longest time.Duration
		for range n {
			d := w.Think(r, scale)
			sum += d
			longest = max(longest, d)
		}
		mean, want := sum.Seconds()/n, scale*w.ThinkMean.Seconds()
		if math.Abs(mean-want) > 0.015*want {
			t.Errorf("mean think time %.4f s, want %.4f", mean, want)
		}
		if limit := time.Duration(scale * float64(w.ThinkMax)); longest > limit {
			t.Errorf("a think time of %s, want at most %s", longest, limit)
		}
		if w.SessionTimeout(scale) <= time.Duration(scale*float64(w.ThinkMax)) {
			t.Error("a session times out while its user thinks")
		}
	})
}

func TestPaddingMeans(t *testing.T) {
	all(t, func(t *testing.T, w *Workload) {
		r := rand.New(rand.NewPCG(5, 6))
		const n, scale = 100_000, 0.5
		sum := 0
		for range n {
			sum += w.Padding(r, scale)
		}
		want := scale * float64(w.PaddingBytes)
		if mean := float64(sum) / n; math.Abs(mean-want) > 0.01*want {
			t.Errorf("mean padding %.0f bytes, want %.0f", mean, want)
		}
	})
}

func TestFileSet(t *testing.T) {
	f := NewFileSet(100, 1)
	if f.Dirs != 25 {
		t.Errorf("%d directories for 100 sessions, want 25", f.Dirs)
	}
	const n = 300_000
	r := rand.New(rand.NewPCG(7, 8))
	dirs, byClass := make([]int, f.Dirs), make([]int, len(classes))
	sum := 0.0
	for range n {
		dir, file := f.Draw(r)
		dirs[dir]++
		sum += float64(f.Bytes(file))
		for c := range classes {
			if file < classes[c].files {
				byClass[c]++
				break
			}
			file -= classes[c].files
		}
	}
	for c, count := range byClass {
		if got := float64(count) / n; math.Abs(got-classes[c].probability) > 0.004 {
			t.Errorf("class %d has %.4f of the downloads, want %.3f", c, got, classes[c].probability)
		}
	}
	// The ratio of two ranks is the definition of the exponent.
	ratio := float64(dirs[0]) / float64(dirs[3])
	if want := math.Pow(4, zipfExponent); math.Abs(ratio-want) > 0.05*want {
		t.Errorf("the first directory is asked for %.2f times as often as the fourth, want %.2f", ratio, want)
	}
	mean := 0.0
	files := 0
	for _, c := range classes {
		mean += c.probability * c.bytes
		files += c.files
	}
	if got := sum / n; math.Abs(got-mean) > 0.02*mean {
		t.Errorf("a download has %.0f bytes in the mean, want %.0f", got, mean)
	}
	if files != FilesPerDir {
		t.Errorf("the classes have %d files, want %d", files, FilesPerDir)
	}
}

// Whatever the scale and the number of sessions, files and images are there
// and draws stay inside.
func TestSizesAndDrawsStayInRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		scale := rapid.Float64Range(1e-4, 1).Draw(t, "scale")
		f := NewFileSet(rapid.IntRange(1, 5000).Draw(t, "sessions"), scale)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		total := int64(0)
		for range 100 {
			dir, file := f.Draw(r)
			if dir < 0 || dir >= f.Dirs || file < 0 || file >= FilesPerDir || f.Bytes(file) < minFileBytes {
				t.Fatalf("drew directory %d of %d, file %d of %d bytes", dir, f.Dirs, file, f.Bytes(file))
			}
		}
		for file := range FilesPerDir {
			total += int64(f.Bytes(file))
		}
		if f.TotalBytes() != total*int64(f.Dirs) {
			t.Fatalf("total %d", f.TotalBytes())
		}
		if n := ImageBytes(rapid.IntRange(0, MaxImage-1).Draw(t, "image"), scale); n < 64 || n > maxImageBytes {
			t.Fatalf("an image of %d bytes", n)
		}
	})
}

func TestByName(t *testing.T) {
	if _, err := ByName("bankng"); err == nil {
		t.Error("an unknown workload gave no error")
	}
	if w, _ := ByName(Support); w.UsesTLS() || w.Index("download") < 0 || w.Index("x") != -1 {
		t.Error("Support uses TLS, or has no downloads")
	}
	w, _ := ByName(Ecommerce)
	for _, p := range w.Pages {
		if want := p.Name == "login" || p.Name == "shipping" || p.Name == "billing" || p.Name == "confirm"; p.TLS != want {
			t.Errorf("page %s: TLS %t, want %t", p.Name, p.TLS, want)
		}
	}
}
