package faultd

import (
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

// MaxExpected is how many pages one call of [Engine.Expect] takes: some more and
// the faults that are not expected wait behind those that are.
const MaxExpected = 256

// ExpectStats counts what Expect was told of.
type ExpectStats struct {
	Runs  uint64 `json:"runs"`  // runs fetched
	Pages uint64 `json:"pages"` // pages fetched
	Late  uint64 `json:"late"`  // faults on a page that was on its way
}

// Expect fetches pages on the demand channels as if they were touched now: the
// machine will touch them in a moment, one after the other, each as long as a
// fault takes. Pages that are there, or on their way, are left out, and so is what
// there is no room for among the outstanding faults. An error means that a run lies
// outside of the regions, or that there are more than MaxExpected pages; then nothing
// is fetched. The latencies of these fetches are not among those of faults.
func (e *Engine) Expect(runs []pagecache.Run) error {
	var pages uint64
	for _, run := range runs {
		r := e.regions[run.Region]
		if r == nil {
			return fmt.Errorf("expected pages: there is no region %d", run.Region)
		}
		if run.First >= r.Pages || uint64(run.Count) > r.Pages-run.First {
			return fmt.Errorf("expected pages %d+%d: region %d has %d", run.First, run.Count, run.Region, r.Pages)
		}
		if pages += uint64(run.Count); pages > MaxExpected {
			return fmt.Errorf("more than %d pages are expected", MaxExpected)
		}
	}
	var slots []uint32
	now := time.Now()
	for _, run := range runs {
		before := len(slots)
		for page := run.First; page < run.First+uint64(run.Count); page++ {
			if e.regions[run.Region].Residency.State(page) != pagecache.Absent {
				continue
			}
			n, ok := e.out.expect(run.Region, page, now)
			if !ok {
				continue
			}
			e.demandBusy.Add(1)
			slots = append(slots, n)
		}
		if n := len(slots) - before; n > 0 {
			e.stats.expectedRuns.Add(1)
			e.stats.expectedPages.Add(uint64(n))
		}
	}
	e.requeue(slots)
	return nil
}

// expect makes the fetch of a page that nobody waits for yet, unless there is one or
// no room for it.
func (o *outstanding) expect(region uint32, page uint64, now time.Time) (uint32, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	at, ok := o.find(region, page/o.group)
	if ok || len(o.free) == 0 {
		return 0, false
	}
	n := o.take(at, transport.Range{Region: region, First: page, Count: 1}, now)
	o.slots[n].expected = true
	return n, true
}
