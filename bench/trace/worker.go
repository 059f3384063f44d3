package trace

import (
	"time"

	"github.com/pagewarp/pagewarp/pagecache"
)

// These are faultd's: see precache.go there.
const (
	maxRuns   = 1024
	postBatch = 8
	leastRun  = 64 << 10
	dryPause  = 2 * time.Millisecond
	gatePause = 200 * time.Microsecond
)

// worker is one precache channel: its loop is that of faultd, with the planner's
// own parts, and events in the stead of waiting.
type worker struct {
	s        *simulation
	flow     *flow
	window   *pagecache.Window
	inflight int
	lastPost time.Duration
	serveAt  time.Duration // until when the source's thread is busy
	takeAt   time.Duration // until when the destination's is
	runs     [1]pagecache.Run
}

// post sends as many fetches as the gate, the window and the cap admit.
func (w *worker) post() {
	s := w.s
	if s.res.Drained || !s.on {
		return
	}
	n, pause := 0, time.Duration(-1)
	for n < postBatch && w.inflight < maxRuns {
		if s.busy > 0 && s.now-w.lastPost < s.o.GateHold {
			s.res.Gated++
			pause = gatePause
			break
		}
		if d := s.limiter.Delay(s.wall()); d > 0 {
			pause = d
			break
		}
		room := w.window.Next()
		if room == 0 {
			break
		}
		if s.planner.Next(w.runs[:], room/pageSize) == 0 {
			pause = dryPause
			break
		}
		w.fetch(w.runs[0])
		n++
	}
	if n > 0 {
		w.lastPost = s.now
		s.res.PrecacheFetches += uint64(n)
	}
	if w.inflight == 0 && pause >= 0 {
		s.after(pause, w.post)
	}
}

// fetch asks for a run.
func (w *worker) fetch(run pagecache.Run) {
	s := w.s
	m := s.regions[run.Region]
	bytes, sent := uint64(run.Count)*m.pageSize, s.wall()
	w.inflight++
	w.window.OnSent(bytes, sent)
	s.limiter.Charge(int64(bytes), sent)
	s.after(s.o.RTT/2, func() {
		w.serveAt = max(w.serveAt, s.now) + s.o.ServePage*time.Duration(run.Count)
		s.at(w.serveAt, func() {
			wire := s.wireBytes(m, run.First, uint64(run.Count), s.o.Ratio)
			s.res.PrecacheBytes += uint64(wire)
			s.link.send(w.flow, wire, func() {
				w.takeAt = max(w.takeAt, s.now) + s.o.TakePage*time.Duration(run.Count)
				s.at(w.takeAt, func() { w.answered(run, m, bytes, wire, sent) })
			})
		})
	})
}

func (w *worker) answered(run pagecache.Run, m *memory, bytes uint64, wire int, sent time.Time) {
	s := w.s
	w.inflight--
	n := s.arrive(m, run.First, uint64(run.Count))
	s.res.PrecachePages += n
	s.res.Duplicates += uint64(run.Count) - n
	w.window.OnDelivered(bytes, sent, s.wall())
	s.limiter.Charge(int64(wire)-int64(bytes), s.wall())
	if err := s.planner.Done(run); err != nil {
		s.err = err
		return
	}
	w.post()
}
