package record

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/pagewarp/pagewarp/bench/trace"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/relocate"
)

// readLog reads the only fault log in a folder.
func readLog(dir string) ([]relocate.FaultRecord, error) {
	logs, err := filepath.Glob(filepath.Join(dir, "*.faults"))
	if err != nil {
		return nil, err
	}
	if len(logs) != 1 {
		return nil, fmt.Errorf("%d fault logs in %s, want one", len(logs), dir)
	}
	return relocate.ReadFaultLog(logs[0])
}

// touches makes a trace's touches of a log that was recorded on demand only, from
// the time at which the guest ran. What the guest computed before a touch is the
// time since the end of the fault before, or nothing if that had not ended, as
// with several vCPUs.
func touches(fs []relocate.FaultRecord, resumed time.Time) ([]trace.Touch, error) {
	start := resumed.UnixNano()
	type key struct {
		region uint32
		page   uint64
	}
	open, last := map[key]bool{}, start
	var ts []trace.Touch
	for _, f := range fs {
		k := key{f.Region, f.Page}
		if f.Class == relocate.FaultServed {
			delete(open, k)
			last = max(last, f.At)
			continue
		}
		class := trace.Class(f.Class) // of FaultListed, none of those below
		if f.At < start || class != trace.Fetched && class != trace.Zero {
			continue // the load of the device state; or a page touched before
		}
		think := int64(0)
		if len(open) == 0 {
			think = max(0, f.At-last)
		}
		ts = append(ts, trace.Touch{At: time.Duration(f.At - start), Think: time.Duration(think), Region: f.Region, Page: f.Page, Class: class})
		if class == trace.Fetched {
			open[k] = true
		} else {
			last = max(last, f.At)
		}
	}
	if len(ts) == 0 {
		return nil, errors.New("the guest did not fault once after it had moved")
	}
	return ts, nil
}

// hotList makes a trace's hot list of a log: the last one's pages first. What is
// beyond the planner's bound is left out.
func hotList(fs []relocate.FaultRecord) (hot []pagecache.Run) {
	var lists [][]pagecache.Run
	at := int64(-1)
	for _, f := range fs {
		if f.Class != relocate.FaultListed {
			continue
		}
		if f.At != at {
			lists, at = append(lists, nil), f.At
		}
		last := &lists[len(lists)-1]
		*last = append(*last, pagecache.Run{Region: f.Region, First: f.Page, Count: f.Count})
	}
	for _, l := range slices.Backward(lists) {
		hot = append(hot, l...)
	}
	return hot[:min(len(hot), pagecache.MaxListed)]
}
