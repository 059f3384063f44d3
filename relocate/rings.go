package relocate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// ringsMethod marks a HOT of the pages that the VMM itself touches as it loads its
// state. A destination that does not know it takes it for a hot list like others.
const ringsMethod = "virtio rings"

// Rings is the precache policy that brings the virtqueues of the machine's devices while
// the source still saves their state: the destination's VMM reads them one after
// the other when it loads it, and the guest stands still meanwhile.
const Rings = "rings"

// PolicyNames are the precache policies of [Options], in the order in which they
// come to their turn, and DefaultPolicyNames those that are used if nothing is said.
var (
	PolicyNames        = slices.Concat([]string{Rings}, pagecache.PolicyNames)
	DefaultPolicyNames = slices.Concat([]string{Rings}, pagecache.DefaultPolicyNames)
)

// CheckPolicies says what is wrong with a list of names.
func CheckPolicies(names []string) error {
	for _, n := range names {
		if !slices.Contains(PolicyNames, n) {
			return fmt.Errorf("precache policy %q is not one of %s", n, strings.Join(PolicyNames, ", "))
		}
	}
	return nil
}

// ringsFound is a search for the rings that runs beside the destination's start.
type ringsFound struct {
	wg   sync.WaitGroup
	done chan struct{}
	runs []pagecache.Run // immutable once done is closed
}

// findRings looks for the pages of the machine's virtqueues. It ends with ctx.
func (o *outgoing) findRings(ctx context.Context) *ringsFound {
	f := &ringsFound{done: make(chan struct{})}
	f.wg.Go(func() {
		defer close(f.done)
		runs, err := o.ringPages(ctx)
		if err != nil && ctx.Err() == nil {
			o.log.Info("the pages of the virtqueues are not known, the destination takes them one by one", "err", err)
		}
		f.runs = runs
	})
	return f
}

// wait waits for the end.
func (f *ringsFound) wait() {
	if f != nil {
		f.wg.Wait()
	}
}

// ringPages are the runs of pages that hold the rings, in order, none twice.
func (o *outgoing) ringPages(ctx context.Context) ([]pagecache.Run, error) {
	rings, err := o.vm.Rings(ctx)
	if err != nil || len(rings) == 0 {
		return nil, err
	}
	var pages []pagecache.Run
	for i, m := range o.rec.Memory {
		maps, err := qemu.MemoryMapping(o.rec.PID, m.Path)
		if err != nil {
			return nil, err
		}
		size := uint64(o.rec.Regions[i].PageSize)
		for _, mp := range maps {
			for _, r := range rings {
				if r.Addr < mp.Start || r.Addr >= mp.End {
					continue // in another region
				}
				from := mp.Offset + r.Addr - mp.Start
				first, last := from/size, (from+min(r.Len, mp.End-r.Addr)-1)/size
				for p := first; p <= last; p++ {
					pages = append(pages, pagecache.Run{Region: uint32(i), First: p, Count: 1})
				}
			}
		}
	}
	return joinPages(pages), nil
}

// joinPages makes runs of single pages, each in one of them, at most
// [faultd.MaxExpected] pages in all.
func joinPages(pages []pagecache.Run) []pagecache.Run {
	slices.SortFunc(pages, func(a, b pagecache.Run) int {
		if a.Region != b.Region {
			return int(a.Region) - int(b.Region)
		}
		if a.First < b.First {
			return -1
		}
		return int(min(a.First-b.First, 1))
	})
	pages = slices.Compact(pages)
	pages = pages[:min(len(pages), faultd.MaxExpected)]
	var runs []pagecache.Run
	for _, p := range pages {
		if n := len(runs); n > 0 && runs[n-1].Region == p.Region && runs[n-1].First+uint64(runs[n-1].Count) == p.First {
			runs[n-1].Count++
			continue
		}
		runs = append(runs, p)
	}
	return runs
}

// tellRings sends what was found, if it was by now; nothing waits for it.
func (o *outgoing) tellRings(ctl *control, f *ringsFound) error {
	if f == nil {
		return nil
	}
	select {
	case <-f.done:
	default:
		o.log.Info("the destination was ready before the virtqueues were found")
		return nil
	}
	if len(f.runs) == 0 {
		return nil
	}
	return ctl.send(msgHot, hotMsg{Method: ringsMethod, Runs: appendRuns(nil, f.runs)})
}

// expect has the pages of the rings fetched, now that the image is frozen.
func (in *incoming) expect() {
	in.mu.Lock()
	runs := in.rings
	in.rings = nil
	in.mu.Unlock()
	if len(runs) == 0 {
		return
	}
	if err := in.memory.engine.Expect(runs); err != nil {
		in.warn("the source's list of virtqueues is ignored", "err", err)
	}
}
