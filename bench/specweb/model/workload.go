package model

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
	"strings"
	"time"
)

// Names of the workloads.
const (
	Banking   = "banking"
	Ecommerce = "ecommerce"
	Support   = "support"
)

// Names lists the workloads.
func Names() []string { return []string{Banking, Ecommerce, Support} }

// End is the index that stands for the end of a session.
const End = -1

// Page is one dynamic page of a workload.
type Page struct {
	// Name is the page's name in URLs; Type groups pages in reports, and is
	// the name but for the two sides of a check.
	Name, Type string
	// NoThink pages are requested at once, without a think time before.
	NoThink bool
	// TLS pages are requested over TLS, and their images with them.
	TLS bool
	// Images is how many images the page embeds.
	Images int
	// Queries is how many queries it makes to the back end.
	Queries int
	// Raw pages are an image or a file themselves, without HTML and padding.
	Raw bool
	// Download pages send a file of the file set, and are judged by rate too.
	Download bool

	next []transition
}

type transition struct {
	upTo float64 // cumulative probability
	page int     // or End
}

// Workload is one of the three workloads. It is immutable.
type Workload struct {
	Name string
	// Good and Tolerable are the limits of a page's time, images included;
	// of at least 95 % and 99 % of the pages. They are not scaled.
	Good, Tolerable time.Duration
	// GoodRate and TolerableRate are the limits of a download in bytes/s, from
	// its first byte to its last; 0 where there are no downloads.
	GoodRate, TolerableRate float64
	// ThinkMean and ThinkMax are of the think times, unscaled.
	ThinkMean, ThinkMax time.Duration
	// ThinkShare is the share of requests with a think time before them, as
	// published; the chain is made to have it.
	ThinkShare float64
	// PaddingBytes is the mean padding of a page, unscaled.
	PaddingBytes int
	// Pages are the pages; the first one begins a session.
	Pages []Page
	// Mix is the published share of each type of page, 0 to 1.
	Mix map[string]float64
}

// ByName returns a workload.
func ByName(name string) (*Workload, error) {
	switch name {
	case Banking:
		return banking, nil
	case Ecommerce:
		return ecommerce, nil
	case Support:
		return support, nil
	}
	return nil, fmt.Errorf("workload %q: choose one of %s", name, strings.Join(Names(), ", "))
}

// Index returns the index of the page of that name, or -1.
func (w *Workload) Index(page string) int {
	for i := range w.Pages {
		if w.Pages[i].Name == page {
			return i
		}
	}
	return -1
}

// Types returns the types of page in the order in which they first appear.
func (w *Workload) Types() []string {
	var types []string
	seen := map[string]bool{}
	for i := range w.Pages {
		if t := w.Pages[i].Type; !seen[t] {
			seen[t] = true
			types = append(types, t)
		}
	}
	return types
}

// UsesTLS reports whether any page is requested over TLS.
func (w *Workload) UsesTLS() bool {
	for i := range w.Pages {
		if w.Pages[i].TLS {
			return true
		}
	}
	return false
}

// Next draws the page after page, or End.
func (w *Workload) Next(page int, r *rand.Rand) int {
	next := w.Pages[page].next
	x := r.Float64()
	i := sort.Search(len(next), func(i int) bool { return x < next[i].upTo })
	return next[min(i, len(next)-1)].page
}

// Think draws a think time: exponential with ThinkMean, cut off at ThinkMax,
// and multiplied by scale. Cutting off 15 means away changes the mean by less
// than a millionth.
func (w *Workload) Think(r *rand.Rand, scale float64) time.Duration {
	x := time.Duration(r.ExpFloat64() * float64(w.ThinkMean))
	return time.Duration(float64(min(x, w.ThinkMax)) * scale)
}

// Padding draws the padding of one page in bytes: uniform around the mean, at
// most half of it away, and multiplied by scale.
func (w *Workload) Padding(r *rand.Rand, scale float64) int {
	return int(float64(w.PaddingBytes) * (0.5 + r.Float64()) * scale)
}

// SessionTimeout is how long the server keeps a session that makes no request:
// longer than the longest think time, 20 minutes unscaled, and 10 s at least,
// which a stalled server may need.
func (w *Workload) SessionTimeout(scale float64) time.Duration {
	return max(time.Duration(float64(20*time.Minute)*scale), 10*time.Second)
}

// Transition returns the probability that page is followed by another, or by
// End.
func (w *Workload) Transition(page, to int) float64 {
	last := 0.0
	for _, t := range w.Pages[page].next {
		if t.page == to {
			return t.upTo - last
		}
		last = t.upTo
	}
	return 0
}

// Stationary returns the share of requests that go to each page in the long
// run, when every session's end is followed by a new session, and the mean
// length of a session in requests. It iterates the chain to its fixed point.
func (w *Workload) Stationary() (share []float64, length float64) {
	n := len(w.Pages)
	share = make([]float64, n)
	share[0] = 1
	for range 10000 {
		next := make([]float64, n)
		change := 0.0
		for i, p := range share {
			for j := range n {
				next[j] += p * w.Transition(i, j)
			}
			next[0] += p * w.Transition(i, End)
		}
		for i := range next {
			// Averaging with the step before damps chains that would swing.
			next[i] = (next[i] + share[i]) / 2
			change += math.Abs(next[i] - share[i])
		}
		share = next
		if change < 1e-13 {
			break
		}
	}
	ends := 0.0
	for i, p := range share {
		ends += p * w.Transition(i, End)
	}
	return share, 1 / ends
}
