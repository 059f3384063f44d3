package specweb

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/pagewarp/pagewarp/bench/load"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/bench/specweb/model"
)

// BinLength is the length of a bin of pages.
const BinLength = load.BinLength

// class is what a page was to its visitor.
type class uint8

const (
	good class = iota
	tolerable
	failed // too late, or without a right answer
)

// kind is how a request ended.
type kind uint8

const (
	answered kind = iota
	noAnswer      // no connection, a broken one, the deadline
	refused       // a status other than 200
	corrupt       // a wrong checksum, or another page than was asked for
	kinds
)

type sample struct {
	at, took time.Duration // at counts from Log.Start to the end of the page
	bytes    int64         // images included
	page     uint8
	class    class
	kind     kind
}

// Log is what a load has noted. It is immutable.
type Log struct {
	// Start and End are the load's own.
	Start, End time.Time
	// Dropped counts pages that were not noted for want of room.
	Dropped uint64

	work       *model.Workload
	rate       float64   // of an open loop
	firstDue   time.Time // of an open loop
	samples    []sample  // by at
	firstError [kinds]string
}

func (l *Log) clone() *Log {
	c := *l
	c.samples = slices.Clone(l.samples)
	return &c
}

// span returns the samples from one time up to another, without it.
func (l *Log) span(from, to time.Time) []sample {
	search := func(t time.Time) int {
		at := t.Sub(l.Start)
		return sort.Search(len(l.samples), func(i int) bool { return l.samples[i].at >= at })
	}
	i, j := search(from), search(to)
	return l.samples[i:max(i, j)]
}

// Counts are pages by what they were to their visitors.
type Counts struct {
	// Good and Tolerable pages came within the workload's limits; Failed ones
	// were too late or had no right answer.
	Good      int `json:"good"`
	Tolerable int `json:"tolerable"`
	Failed    int `json:"failed"`
	// Errors are the failed pages without a right answer.
	Errors int `json:"errors"`
}

func (c *Counts) add(s sample) {
	switch s.class {
	case good:
		c.Good++
	case tolerable:
		c.Tolerable++
	default:
		c.Failed++
	}
	if s.kind != answered {
		c.Errors++
	}
}

// Pages is the number of all pages.
func (c Counts) Pages() int { return c.Good + c.Tolerable + c.Failed }

// Shares returns the shares of good pages, and of good and tolerable ones.
func (c Counts) Shares() (good, tolerable float64) {
	n := float64(max(c.Pages(), 1))
	return float64(c.Good) / n, float64(c.Good+c.Tolerable) / n
}

// Bin is what ended in one BinLength.
type Bin struct {
	// StartMS is its start, in ms after the start of the span.
	StartMS float64 `json:"start_ms"`
	Counts
	// Bytes is the length of all bodies, images included.
	Bytes int64 `json:"bytes"`
	// MaxMS is the longest time of a page.
	MaxMS float64 `json:"max_ms"`
}

// Bins returns the bins from one time to another; the last may be cut short.
func (l *Log) Bins(from, to time.Time) []Bin {
	bins := make([]Bin, max(int((to.Sub(from)+BinLength-1)/BinLength), 0))
	for i := range bins {
		bins[i].StartMS = ms(time.Duration(i) * BinLength)
	}
	offset := from.Sub(l.Start)
	for _, s := range l.span(from, to) {
		b := &bins[(s.at-offset)/BinLength]
		b.add(s)
		b.Bytes += s.bytes
		b.MaxMS = max(b.MaxMS, ms(s.took))
	}
	return bins
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// LongestGap returns the longest time without a right answer between from and
// to, whose two ends count as answers.
func (l *Log) LongestGap(from, to time.Time) load.Gap {
	base := from.Sub(l.Start)
	var longest, start time.Duration
	last := base
	see := func(at time.Duration) {
		if at-last > longest {
			longest, start = at-last, last-base
		}
		last = at
	}
	for _, s := range l.span(from, to) {
		if s.kind == answered {
			see(s.at)
		}
	}
	see(to.Sub(l.Start))
	return load.Gap{StartMS: ms(start), LengthMS: ms(longest)}
}

// PageSummary sums up one type of page.
type PageSummary struct {
	Page string `json:"page"`
	Counts
	// Share is the type's share of all pages, and Published what it is in the
	// workload's table; 0 where that names none.
	Share     float64 `json:"share"`
	Published float64 `json:"published_share,omitempty"`
	// TimeUS are the times of the pages with a right answer, in µs.
	TimeUS report.Latency `json:"time_us"`
}

// Summary is what a span of the load comes to.
type Summary struct {
	Seconds float64 `json:"seconds"`
	Counts
	// GoodShare is of pages that were good, TolerableShare of those that were
	// good or tolerable; at least 0.95 and 0.99 are wanted.
	GoodShare      float64 `json:"good_share"`
	TolerableShare float64 `json:"tolerable_share"`
	// PerSecond is pages with a right answer per second.
	PerSecond float64 `json:"per_second"`
	// NoAnswer, Refused and Corrupt are the errors by kind.
	NoAnswer int   `json:"no_answer"`
	Refused  int   `json:"refused"`
	Corrupt  int   `json:"corrupt"`
	Bytes    int64 `json:"bytes"`
	// Unanswered are the pages of an open loop that were due before the end of
	// the span and had not ended by then: few, unless the server stalls.
	Unanswered int `json:"unanswered"`
	// Dropped counts pages of the whole load that were not noted.
	Dropped uint64 `json:"dropped"`
	// TimeUS are the times of the pages with a right answer, in µs.
	TimeUS     report.Latency `json:"time_us"`
	LongestGap load.Gap       `json:"longest_gap"`
	Pages      []PageSummary  `json:"pages"`
	// FirstErrors has the first error of each kind in the whole load.
	FirstErrors []string `json:"first_errors,omitempty"`
}

// Summary sums up the pages between from and to.
func (l *Log) Summary(from, to time.Time) Summary {
	s := Summary{Seconds: to.Sub(from).Seconds(), Dropped: l.Dropped, LongestGap: l.LongestGap(from, to)}
	types := l.work.Types()
	index := map[string]int{}
	for i, t := range types {
		index[t] = i
		s.Pages = append(s.Pages, PageSummary{Page: t, Published: l.work.Mix[t]})
	}
	var all []time.Duration
	byType := make([][]time.Duration, len(types))
	for _, x := range l.span(from, to) {
		i := index[l.work.Pages[x.page].Type]
		s.add(x)
		s.Pages[i].add(x)
		s.Bytes += x.bytes
		switch x.kind {
		case answered:
			all = append(all, x.took)
			byType[i] = append(byType[i], x.took)
		case noAnswer:
			s.NoAnswer++
		case refused:
			s.Refused++
		case corrupt:
			s.Corrupt++
		}
	}
	for i := range s.Pages {
		p := &s.Pages[i]
		p.Share = float64(p.Counts.Pages()) / float64(max(s.Counts.Pages(), 1))
		p.TimeUS = report.Summarize(byType[i])
	}
	s.Unanswered = l.unanswered(to)
	s.GoodShare, s.TolerableShare = s.Shares()
	s.TimeUS = report.Summarize(all)
	if s.Seconds > 0 {
		s.PerSecond = float64(len(all)) / s.Seconds
	}
	for _, e := range l.firstError {
		if e != "" {
			s.FirstErrors = append(s.FirstErrors, e)
		}
	}
	return s
}

// unanswered returns how many pages were due before at and had not ended.
func (l *Log) unanswered(at time.Time) int {
	if l.rate == 0 || at.Before(l.firstDue) {
		return 0
	}
	due := int(math.Ceil(at.Sub(l.firstDue).Seconds() * l.rate))
	return max(0, due-len(l.span(l.Start, at))-int(l.Dropped))
}

const warmupBase = 3 * time.Second

// Warmup90 returns how long after the switch the rate of right answers was back
// at 90 % of its mean over the 3 s before; see load.WarmUp.
func (l *Log) Warmup90(at time.Time) (time.Duration, error) {
	if at.Add(-warmupBase).Before(l.Start) {
		return 0, fmt.Errorf("compute the warm-up: the load ran for %s before the switch, want %s", at.Sub(l.Start), warmupBase)
	}
	counts := func(from, to time.Time) []float64 {
		bins := l.Bins(from, to)
		c := make([]float64, len(bins))
		for i, b := range bins {
			c[i] = float64(b.Pages() - b.Errors)
		}
		return c
	}
	return load.WarmUp(counts(at.Add(-warmupBase), at), counts(at, l.End), BinLength)
}
