package pagecache

import (
	"sync"
)

// The constants of Around.
const (
	aroundStreams = 16  // walks followed at a time
	aroundAge     = 256 // faults elsewhere after which a walk is forgotten
	aroundReach   = 512 // pages between a fault and the walk it belongs to, at most
	aroundSkip    = 64  // steps of a walk over pages that have come by other ways, at most
	aroundVotes   = 8   // last steps of a walk that vote on its stride
	aroundQuorum  = 4   // votes that are needed
	aroundFirst   = 4   // pages of the first window
	aroundQueue   = 64  // proposals waiting, at most
)

// AroundConfig configures an [Around].
type AroundConfig struct {
	Window uint64 // the most pages that one fault brings; default 32
}

// Around reads ahead of walks through memory. Each fault is counted to the walk
// that it is near to, and a stride that has the majority among a walk's last
// steps (the vote of Boyer and Moore, as in Maruf and Chowdhury, "Effectively
// Prefetching Remote Memory with Leap", USENIX ATC 2020, section 3.2) opens a
// window in its direction. The window doubles each time that the walk goes on
// where it ended, and is halved each time that it does not. Faults without a
// pattern open none and cost nothing. That several walks are followed apart, so
// that vCPUs do not spoil each other's vote, is ours.
//
// A window of stride 1 or -1 travels with the demand fetch ([Planner.Ahead]), at
// larger strides its pages are proposed to precache one by one.
type Around struct {
	cfg AroundConfig

	mu      sync.Mutex
	walks   [aroundStreams]walk   // guarded by mu; most recent first, unused ones last
	n       int                   // guarded by mu; walks in use
	queue   [aroundQueue]PageSpan // guarded by mu; proposals, a ring
	clock   uint64                // guarded by mu; faults seen
	head    int                   // guarded by mu
	queued  int                   // guarded by mu
	brought PolicyStats           // guarded by mu; with demand fetches, and used
}

// walk is a sequence of faults near each other.
type walk struct {
	region int
	last   uint64 // page of the last fault
	seen   uint64 // clock of the last fault
	steps  [aroundVotes]int64
	n      int    // steps in use
	stride int64  // of the open window; 0: none
	window uint64 // pages ahead of last, last included; 1: none
}

// NewAround returns a policy that follows no walk yet.
func NewAround(cfg AroundConfig) *Around {
	if cfg.Window == 0 {
		cfg.Window = 32
	}
	return &Around{cfg: cfg}
}

// Name returns "around".
func (a *Around) Name() string { return "around" }

// Fault does nothing: Around hears of faults by [Planner.Ahead].
func (a *Around) Fault(View, int, uint64) {}

// ProposePages returns the next page of a walk with a long stride.
func (a *Around) ProposePages(View) (PageSpan, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.queued == 0 {
		return PageSpan{}, false
	}
	s := a.queue[a.head]
	a.head = (a.head + 1) % aroundQueue
	a.queued--
	return s, true
}

// follow counts a fault and returns the stride and the pages of its window, at
// least 1: the page alone.
func (a *Around) follow(r *region, page uint64) (stride int64, window uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clock++
	w := a.walkOf(r.slot, page)
	if w == nil {
		return 0, 1
	}
	step := int64(page - w.last)
	if step == 0 {
		return 0, 1 // another vCPU, or again
	}
	if w.stride != 0 && w.goesOn(r.res, step) {
		a.brought.Used += w.window - 1
		w.window = min(2*w.window, a.cfg.Window)
		step = w.stride
	} else if w.stride != 0 {
		if w.window /= 2; w.window < 2 {
			w.stride, w.window, w.n = 0, 1, 0
		}
	}
	w.vote(step)
	w.last = page
	if s := w.majority(); s != w.stride && s != 0 {
		w.stride, w.window = s, min(aroundFirst, a.cfg.Window)
	}
	if w.stride == 0 {
		return 0, 1
	}
	if w.stride != 1 && w.stride != -1 {
		a.propose(w, r.res.Pages())
		return 0, 1
	}
	return w.stride, w.window
}

// goesOn reports whether a step leads to the window's end, or on in its stride
// over pages that have come by other ways.
func (w *walk) goesOn(res *Residency, step int64) bool {
	ahead := step/w.stride - int64(w.window)
	if step%w.stride != 0 || ahead < 0 || ahead > aroundSkip {
		return false
	}
	at := w.last + w.window*uint64(w.stride)
	for ; ahead > 0; ahead-- {
		if res.State(at) == Absent {
			return false
		}
		at += uint64(w.stride)
	}
	return true
}

func (w *walk) vote(step int64) {
	copy(w.steps[1:], w.steps[:])
	w.steps[0] = step
	w.n = min(w.n+1, aroundVotes)
}

// majority returns the step that more than half of the votes are for, or 0. The
// latest votes suffice if they agree.
func (w *walk) majority() int64 {
	for n := aroundQuorum; n <= w.n; n *= 2 {
		var lead int64
		count := 0
		for _, s := range w.steps[:n] {
			switch {
			case count == 0:
				lead, count = s, 1
			case s == lead:
				count++
			default:
				count--
			}
		}
		count = 0
		for _, s := range w.steps[:n] {
			if s == lead {
				count++
			}
		}
		if count > n/2 {
			return lead
		}
	}
	return 0
}

// walkOf moves the walk that a fault belongs to to the front, or begins one there
// and returns nil.
func (a *Around) walkOf(region int, page uint64) *walk {
	i := 0
	for ; i < a.n; i++ {
		w := &a.walks[i]
		reach := int64(aroundReach)
		if w.stride != 0 {
			reach += int64(w.window) * max(w.stride, -w.stride)
		}
		if d := int64(page - w.last); w.region == region && d <= reach && d >= -reach {
			break
		}
	}
	found := i < a.n
	w := walk{region: region, last: page, window: 1}
	if found {
		w = a.walks[i]
	} else {
		i = a.spare()
	}
	w.seen = a.clock
	copy(a.walks[1:i+1], a.walks[:i])
	a.walks[0] = w
	if !found {
		return nil
	}
	return &a.walks[0]
}

// spare returns the place of a walk that can be forgotten: a free one, one that is
// old, the oldest that has no window, or the oldest of all.
func (a *Around) spare() int {
	if a.n < aroundStreams {
		a.n++
		return a.n - 1
	}
	last := a.n - 1
	if a.clock-a.walks[last].seen > aroundAge {
		return last
	}
	for i := last; i > 0; i-- {
		if a.walks[i].stride == 0 {
			return i
		}
	}
	return last
}

// propose queues the window of a long stride; what does not fit is left out.
func (a *Around) propose(w *walk, pages uint64) {
	at := w.last
	for range w.window - 1 {
		at += uint64(w.stride) // wraps below 0
		if at >= pages || a.queued == aroundQueue {
			return
		}
		a.queue[(a.head+a.queued)%aroundQueue] = PageSpan{Region: w.region, First: at, Count: 1}
		a.queued++
	}
}

// took counts pages that go with a demand fetch.
func (a *Around) took(pages uint64) {
	a.mu.Lock()
	a.brought.Runs++
	a.brought.Pages += pages
	a.mu.Unlock()
}

// addTo adds what the planner has not seen.
func (a *Around) addTo(s *PolicyStats) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Runs += a.brought.Runs
	s.Pages += a.brought.Pages
	s.Used += a.brought.Used
}
