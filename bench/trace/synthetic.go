package trace

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/pagecache"
)

// Synthetic describes a made trace: a guest that touches the pages of a working
// set in a pattern.
type Synthetic struct {
	Pattern  string        // zipf, random, sequential, stride
	RAMMiB   uint64        // of the guest; default 1024
	WSMiB    uint64        // working set, in the middle of the memory; default half of it
	ZeroMiB  uint64        // at the end of the memory, which read as zero; default a quarter
	Touches  int           // default 200,000
	Think    time.Duration // between touches; default 20 µs
	Exponent float64       // of Zipf's law; default 1.2
	Stride   uint64        // pages, of the pattern stride; default 8
	// Past is how long the guest is watched before it stops, for the hot list;
	// default 300 ms.
	Past time.Duration
	Seed uint64
}

// Patterns are the names of the patterns.
func Patterns() []string { return []string{"zipf", "random", "sequential", "stride"} }

const (
	maxTouches = 20_000_000
	pageSize   = 4096
)

// ParseSynthetic reads PATTERN or PATTERN:NAME=VALUE,… with the names ram, ws
// and zero (in MiB), touches, think (a duration), exponent, stride, past (a duration) and seed.
func ParseSynthetic(text string) (Synthetic, error) {
	name, params, given := strings.Cut(text, ":")
	s := Synthetic{Pattern: name, RAMMiB: 1024, Touches: 200_000, Think: 20 * time.Microsecond, Exponent: 1.2, Stride: 8, Past: 300 * time.Millisecond, Seed: 1}
	s.WSMiB, s.ZeroMiB = 1<<63, 1<<63
	if !slices.Contains(Patterns(), name) {
		return s, fmt.Errorf("pattern %q: choose one of %s", name, strings.Join(Patterns(), ", "))
	}
	if given {
		for _, p := range strings.Split(params, ",") {
			key, value, _ := strings.Cut(p, "=")
			if err := s.set(key, value); err != nil {
				return s, fmt.Errorf("pattern %q: %w", text, err)
			}
		}
	}
	if s.WSMiB == 1<<63 {
		s.WSMiB = s.RAMMiB / 2
	}
	if s.ZeroMiB == 1<<63 {
		s.ZeroMiB = s.RAMMiB / 4
	}
	return s, s.check()
}

func (s *Synthetic) set(key, value string) (err error) {
	switch key {
	case "ram":
		s.RAMMiB, err = strconv.ParseUint(value, 10, 32)
	case "ws":
		s.WSMiB, err = strconv.ParseUint(value, 10, 32)
	case "zero":
		s.ZeroMiB, err = strconv.ParseUint(value, 10, 32)
	case "touches":
		s.Touches, err = strconv.Atoi(value)
	case "think":
		s.Think, err = time.ParseDuration(value)
	case "exponent":
		s.Exponent, err = strconv.ParseFloat(value, 64)
	case "stride":
		s.Stride, err = strconv.ParseUint(value, 10, 32)
	case "past":
		s.Past, err = time.ParseDuration(value)
	case "seed":
		s.Seed, err = strconv.ParseUint(value, 10, 64)
	default:
		return fmt.Errorf("no parameter %q; there are ram, ws, zero, touches, think, exponent, stride, past, seed", key)
	}
	return err
}

func (s Synthetic) check() error {
	switch {
	case s.RAMMiB == 0 || s.RAMMiB > 1<<20:
		return fmt.Errorf("ram of %d MiB: 1 to %d are possible", s.RAMMiB, 1<<20)
	case s.WSMiB == 0 || s.WSMiB+s.ZeroMiB > s.RAMMiB:
		return fmt.Errorf("a working set of %d MiB and %d MiB of zeros do not fit %d MiB", s.WSMiB, s.ZeroMiB, s.RAMMiB)
	case s.Pattern == "zipf" && s.WSMiB > 1<<16:
		return fmt.Errorf("a Zipf working set of %d MiB: %d are possible", s.WSMiB, 1<<16)
	case s.Touches < 1 || s.Touches > maxTouches:
		return fmt.Errorf("%d touches: 1 to %d are possible", s.Touches, maxTouches)
	case s.Past < 0 || s.Past > time.Hour:
		return fmt.Errorf("past of %v: 0 to 1 h are possible", s.Past)
	case s.Think < 0 || s.Think > time.Hour:
		return fmt.Errorf("think of %v: 0 to 1 h are possible", s.Think)
	case !(s.Exponent > 1 && s.Exponent <= 10):
		return fmt.Errorf("exponent %v: more than 1 and at most 10 are possible", s.Exponent)
	case s.Stride == 0 || s.Stride > s.WSMiB<<8:
		return fmt.Errorf("stride of %d pages: the working set has %d", s.Stride, s.WSMiB<<8)
	}
	return nil
}

// Make makes the trace. The same description gives the same trace.
func (s Synthetic) Make() (*Trace, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("make trace: %w", err)
	}
	pages, ws, zero := s.RAMMiB<<8, s.WSMiB<<8, s.ZeroMiB<<8
	base := (pages - zero - ws) / 2
	t := &Trace{Schema: Schema, Origin: "synthetic", VCPUs: 1,
		Load:    fmt.Sprintf("%s, %d of %d MiB, a touch each %v", s.Pattern, s.WSMiB, s.RAMMiB, s.Think),
		Regions: []Region{{ID: 0, Name: "ram", Pages: pages, PageSize: pageSize}},
		Link:    Measured{WireRatio: 1}, Touches: make([]Touch, s.Touches)}
	if zero > 0 {
		t.Regions[0].Zero = [][2]uint64{{pages - zero, zero}}
	}
	r := rand.New(rand.NewPCG(s.Seed, 0x70616765))
	next := s.next(r, ws)
	t.Hot = s.hot(base, next)
	for i := range t.Touches {
		t.Touches[i] = Touch{At: time.Duration(i) * s.Think, Think: s.Think, Page: base + next()}
	}
	t.Seconds = (time.Duration(s.Touches) * s.Think).Seconds()
	return t, nil
}

// hot makes the hot list of the guest's past: as the daemon does it, what was
// touched in the last 20 ms first, then what was touched in each 100 ms before.
func (s Synthetic) hot(base uint64, next func() uint64) []pagecache.Run {
	if s.Think <= 0 {
		return nil
	}
	last := map[uint64]time.Duration{} // how long before the stop
	for before := s.Past; before > 0; before -= s.Think {
		last[base+next()] = before
	}
	type page struct {
		number uint64
		epoch  time.Duration
	}
	var pages []page
	for p, before := range last {
		epoch := time.Duration(0)
		if before > 20*time.Millisecond {
			epoch = 1 + (before-20*time.Millisecond)/(100*time.Millisecond)
		}
		pages = append(pages, page{p, epoch})
	}
	slices.SortFunc(pages, func(a, b page) int {
		return cmp.Or(cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.number, b.number))
	})
	var runs []pagecache.Run
	for i, p := range pages {
		if n := len(runs); n > 0 && p.epoch == pages[i-1].epoch && p.number == pages[i-1].number+1 {
			runs[n-1].Count++
		} else {
			runs = append(runs, pagecache.Run{First: p.number, Count: 1})
		}
	}
	return runs[:min(len(runs), pagecache.MaxListed)]
}

// next returns what gives the next page of the pattern.
func (s Synthetic) next(r *rand.Rand, ws uint64) func() uint64 {
	at := uint64(0)
	switch s.Pattern {
	case "zipf":
		// The ranks are scattered, as hot pages are in real memory.
		z, perm := rand.NewZipf(r, s.Exponent, 1, ws-1), r.Perm(int(ws))
		return func() uint64 { return uint64(perm[z.Uint64()]) }
	case "random":
		return func() uint64 { return r.Uint64N(ws) }
	case "stride":
		return func() (p uint64) {
			if p = at; at+s.Stride < ws {
				at += s.Stride
			} else {
				at = (at + 1) % s.Stride // the next column
			}
			return p
		}
	}
	return func() (p uint64) {
		p, at = at, (at+1)%ws
		return p
	}
}
