package micro

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/pagecache"
)

// Region is a region's size, and how much of it has data.
type Region struct {
	Name  string
	Bytes uint64
	// Every is the distance of the islands of 2 MiB that have data, in runs of
	// that size; the rest is known to be zero. 1: all is data.
	Every uint64
}

// Regions are those that [Planner] measures.
var Regions = []Region{
	{"1 GiB", 1 << 30, 1}, {"64 GiB", 64 << 30, 1}, {"1 TiB sparse", 1 << 40, 32},
}

// PolicyLists are the lists of policies that [Planner] measures.
var PolicyLists = [][]string{{"sweep"}, {"bubbles", "sweep"}, pagecache.PolicyNames}

const (
	inFlight   = 64 // runs that are handed out before the first is done
	faultEvery = 16 // decisions for each fault that the planner is told of
	walkFaults = 8  // faults in a row on neighbouring pages, then elsewhere
)

// PlannerOptions configure [Planner].
type PlannerOptions struct {
	Common
	Regions []Region // nil means the variable of that name
}

// PlannerRow is one region with one list of policies.
type PlannerRow struct {
	Region   string        `json:"region"`
	Policies string        `json:"policies"`
	Decision report.Spread `json:"decision_ns"`    // Next and Done of one run
	Scan     report.Spread `json:"next_absent_ns"` // floor: Residency.NextAbsent of as many pages
	// Runs is how many decisions the last pass timed.
	Runs       uint64 `json:"runs"`
	TableBytes uint64 `json:"table_bytes"` // the residency's, whole
	HeapBytes  uint64 `json:"heap_bytes"`  // the planner's own, when the first drain ended or the time was over
}

// PlannerResult is what [Planner] found.
type PlannerResult struct {
	Rows []PlannerRow `json:"rows"`
}

// Planner measures decisions of [pagecache.Planner]: 64 runs are handed out,
// delivered (outside the clock), and done, until the region is complete or the
// time is over; one fault is told for 16 decisions.
func Planner(ctx context.Context, o PlannerOptions) (r PlannerResult, err error) {
	o.defaults(50 * time.Millisecond)
	if o.Regions == nil {
		o.Regions = Regions
	}
	decisions := make([]figure, len(o.Regions)*len(PolicyLists))
	scans := make([]figure, len(decisions))
	for _, reg := range o.Regions {
		for _, list := range PolicyLists {
			r.Rows = append(r.Rows, PlannerRow{Region: reg.Name, Policies: strings.Join(list, ","), TableBytes: pagecache.Size(reg.Bytes / pageSize)})
		}
	}
	err = o.passes(ctx, func() error {
		for i := range r.Rows {
			reg, list := o.Regions[i/len(PolicyLists)], PolicyLists[i%len(PolicyLists)]
			row := &r.Rows[i]
			d, runs, heap, err := decide(ctx, reg, list, o.Slice)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", row.Region, row.Policies, err)
			}
			if row.Runs = runs; row.HeapBytes == 0 {
				row.HeapBytes = heap
			}
			s, err := scan(reg, o.Slice)
			if err != nil {
				return err
			}
			decisions[i].add(d)
			scans[i].add(s)
		}
		return nil
	})
	if err != nil {
		return PlannerResult{}, fmt.Errorf("measure the planner: %w", err)
	}
	for i := range r.Rows {
		r.Rows[i].Decision, r.Rows[i].Scan = decisions[i].spread(), scans[i].spread()
	}
	return r, nil
}

// residency returns the region's, with the pages between the islands zero.
func (reg Region) residency() (*pagecache.Residency, error) {
	res, err := pagecache.New(reg.Bytes / pageSize)
	if err != nil {
		return nil, err
	}
	stride := reg.Every * pagecache.DefaultRunPages
	for at := uint64(0); reg.Every > 1 && at < res.Pages(); at += stride {
		res.Zero(at+pagecache.DefaultRunPages, min(stride, res.Pages()-at)-pagecache.DefaultRunPages)
	}
	return res, nil
}

// drain is one planner on one region, and what the loop needs.
type drain struct {
	reg  Region
	res  *pagecache.Residency
	p    *pagecache.Planner
	rnd  *rand.Rand
	page uint64 // of the last fault
	told int    // faults
	buf  [1]pagecache.Run
	runs [inFlight]pagecache.Run
	won  pagecache.Mask
}

func newDrain(reg Region, list []string) (*drain, error) {
	policies, err := pagecache.Policies(list)
	if err != nil {
		return nil, err
	}
	d := &drain{reg: reg, p: pagecache.NewPlanner(pagecache.Config{Policies: policies}), rnd: rand.New(rand.NewPCG(1, 2)),
		won: make(pagecache.Mask, pagecache.MaskWords(pagecache.DefaultRunPages))}
	if d.res, err = reg.residency(); err != nil {
		return nil, err
	}
	if err := d.p.AddRegion(1, d.res, pageSize); err != nil {
		return nil, errors.Join(err, d.res.Close())
	}
	return d, nil
}

// ask is the first half of a round: up to inFlight runs are handed out.
func (d *drain) ask() (n int) {
	for ; n < len(d.runs); n++ {
		if n%faultEvery == 0 {
			d.fault()
		}
		if d.p.Next(d.buf[:], pagecache.DefaultRunPages) == 0 {
			break
		}
		d.runs[n] = d.buf[0]
	}
	return n
}

// fault tells of one fault, on a page that had data: some in a row, then elsewhere.
func (d *drain) fault() {
	if d.page++; d.told%walkFaults == 0 {
		islands := d.res.Pages() / (d.reg.Every * pagecache.DefaultRunPages)
		d.page = d.rnd.Uint64N(islands)*d.reg.Every*pagecache.DefaultRunPages + d.rnd.Uint64N(pagecache.DefaultRunPages-walkFaults)
	}
	d.told++
	d.p.Fault(1, d.page)
}

// deliver makes the pages of n runs resident.
func (d *drain) deliver(n int) error {
	for _, run := range d.runs[:n] {
		d.res.Claim(run.First, uint64(run.Count), d.won)
		if err := d.res.Commit(run.First, uint64(run.Count), d.won); err != nil {
			return err
		}
	}
	return nil
}

// done is the second half of a round.
func (d *drain) done(n int) error {
	for _, run := range d.runs[:n] {
		if err := d.p.Done(run); err != nil {
			return err
		}
	}
	return nil
}

// decide returns nanoseconds a decision, over at least the given time and from as
// many fresh regions as that takes, and the planner's heap after the first.
func decide(ctx context.Context, reg Region, list []string, least time.Duration) (ns float64, runs, heap uint64, err error) {
	var took time.Duration
	for took < least {
		before := heapBytes()
		d, err := newDrain(reg, list)
		if err != nil {
			return 0, 0, 0, err
		}
		for took < least {
			start := time.Now()
			n := d.ask()
			took += time.Since(start)
			if n == 0 {
				break
			}
			if err := d.deliver(n); err != nil {
				return 0, 0, 0, errors.Join(err, d.res.Close())
			}
			start = time.Now()
			err := d.done(n)
			took += time.Since(start)
			runs += uint64(n)
			if err = errors.Join(err, ctx.Err()); err != nil {
				return 0, 0, 0, errors.Join(err, d.res.Close())
			}
		}
		if heap == 0 {
			after := heapBytes()
			heap = after - min(before, after)
		}
		runtime.KeepAlive(d.p)
		if err := d.res.Close(); err != nil {
			return 0, 0, 0, err
		}
		if runs == 0 {
			return 0, 0, 0, errors.New("the planner hands out nothing")
		}
	}
	return float64(took.Nanoseconds()) / float64(runs), runs, heap, nil
}

func heapBytes() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// scan returns nanoseconds for one call of NextAbsent on up to a run of pages,
// from one run to the next over the whole region and again.
func scan(reg Region, least time.Duration) (float64, error) {
	const calls = 64
	res, err := reg.residency()
	if err != nil {
		return 0, err
	}
	at := uint64(0)
	ns, err := perCall(least, func() error {
		for range calls {
			// To the next data, and to the end of the run there.
			first, _, ok := res.NextAbsent(at, at+reg.Every*pagecache.DefaultRunPages)
			if !ok {
				return fmt.Errorf("no absent page from %d of %s", at, reg.Name)
			}
			if at = first + pagecache.DefaultRunPages; at >= res.Pages()-(reg.Every-1)*pagecache.DefaultRunPages {
				at = 0
			}
		}
		return nil
	})
	return ns / calls, errors.Join(err, res.Close())
}

// Text writes the table.
func (r PlannerResult) Text(w io.Writer) error {
	rows := make([][]string, 0, len(r.Rows))
	for _, p := range r.Rows {
		rows = append(rows, []string{p.Region, p.Policies, p.Decision.Text(), p.Scan.Text(), humanize.Comma(int64(p.Runs)),
			humanize.IBytes(p.TableBytes), humanize.IBytes(p.HeapBytes)})
	}
	return report.Table(w, []string{"region", "policies", "decision ns", "NextAbsent ns", "decisions", "table", "planner"}, rows)
}
