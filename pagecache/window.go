package pagecache

import (
	"sort"
	"sync"
	"time"
)

// The window's constants. Those named after BBR are its published values
// (Cardwell et al. 2016); the start-up gain is the smallest that doubles.
const (
	startGain     = 2.0
	startRounds   = 3                // rounds without growth that end the start-up (BBR)
	startGrowth   = 1.25             // what counts as growth (BBR)
	rateRounds    = 10               // rounds that the maximum rate is remembered (BBR)
	minRTTMaxAge  = 10 * time.Second // BBR
	minRTTAnswers = 20               // nor after fewer answers: the rounds between are to be enough for the rates to age
	minRTTOld     = time.Second      // not believed when the rate has fallen
	shrinkBy      = 0.7
	shrinkLeast   = 0.25
	regrowBy      = 1.15
	historySize   = 256 // points of the delivery curve remembered
	historySteps  = 32  // at most so many points in one minimal answer time

	// A run is as long as what is delivered in so much time: a demand answer waits
	// behind a run that is being sent, and each run costs both sides the same work.
	runTime = 500 * time.Microsecond
)

// cruiseGains cycles, one a round: probe for more, drain what that queued, hold
// (BBR).
var cruiseGains = [...]float64{1.25, 0.75, 1, 1, 1, 1, 1, 1}

// WindowConfig configures a [Window]. Bytes are bytes of pages asked for.
type WindowConfig struct {
	Run     uint64 // bytes of a run on a slow link; required
	MaxRun  uint64 // bytes of a run on a fast one; default and least: Run
	MinRuns int    // runs that may always be in flight; default 2
	Cap     uint64 // bytes in flight at most; default 64 MiB, at least MinRuns of the longest runs
	// Inflation is the multiple of the time that an answer takes on an empty
	// link at which the window shrinks; default 3. It keeps queues in the
	// network short, where demand answers would wait behind precache.
	Inflation float64
}

// Window says how many bytes of precache may be in flight: the windowed maximum
// of the delivery rate times the windowed minimum of the answer time, and a run
// and a half on top. Its methods may be called concurrently.
//
// A rate is measured over the flight of each run, as what was delivered between
// its sending and its arrival, so pipelining does not disturb it. Rounds in
// which the window held nobody back, or the link stood empty, leave the maximum
// alone: they say nothing about it. Every 10 s without a new minimum the window
// falls to one run, so that the answer time is measured without our own queue.
type Window struct {
	cfg WindowConfig

	mu       sync.Mutex // guards the rest
	inflight uint64

	history   [historySize]delivery
	points    uint64 // number ever put into history
	delivered uint64 // bytes

	rates      [rateRounds]float64 // maximum of each round, bytes/s
	round      int                 // current slot of rates
	roundStart time.Time
	limited    bool // the window was full at some time in this round
	filling    bool // nothing was in flight at some time in this round

	minRTT   time.Duration // 0: no sample yet
	minRTTAt time.Time
	minBytes uint64 // of the run that took minRTT

	starting  bool
	startRate float64
	flat      int // rounds without growth in the start-up
	cycle     int // index into cruiseGains

	scale      float64 // below 1 after inflation
	shrunkAt   time.Time
	probing    bool
	probeStart time.Time
}

type delivery struct {
	at    time.Time
	total uint64 // bytes delivered until then
}

// WindowStats is what a window has found out.
type WindowStats struct {
	Rate     float64       // bytes/s: windowed maximum of the delivery rate
	MinRTT   time.Duration // windowed minimum of the answer time
	Window   uint64        // bytes that may be in flight
	InFlight uint64        // bytes that are
}

// NewWindow returns a window that knows nothing of its link yet.
func NewWindow(cfg WindowConfig) *Window {
	cfg.Run = max(cfg.Run, 1)
	if cfg.MinRuns <= 0 {
		cfg.MinRuns = 2
	}
	if cfg.Cap == 0 {
		cfg.Cap = 64 << 20
	}
	cfg.MaxRun = max(cfg.MaxRun, cfg.Run)
	cfg.Cap = max(cfg.Cap, uint64(cfg.MinRuns)*cfg.MaxRun)
	if cfg.Inflation <= 1 {
		cfg.Inflation = 3
	}
	return &Window{cfg: cfg, starting: true, scale: 1}
}

// Next returns how many bytes the next run should have, from Run to MaxRun of the
// configuration, or 0 while there is no room for a whole one: runs are not cut to
// crumbs.
func (w *Window) Next() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	run := w.run()
	if w.inflight+run > w.size(run) {
		w.limited = true
		return 0
	}
	return run
}

// OnSent says that a run of so many bytes was asked for.
func (w *Window) OnSent(bytes uint64, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.inflight == 0 {
		// Idle time before this must not count into its delivery rate, and the
		// flight that fills the empty link says little about it.
		w.record(now, true)
		w.filling = true
	}
	if w.roundStart.IsZero() {
		w.roundStart = now
	}
	w.inflight += bytes
}

// OnLost says that a run of so many bytes will not be answered.
func (w *Window) OnLost(bytes uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inflight -= min(bytes, w.inflight)
}

// OnDelivered says that a run of so many bytes, asked for at sentAt, has been
// answered. bytes is what OnSent was told.
func (w *Window) OnDelivered(bytes uint64, sentAt, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inflight -= min(bytes, w.inflight)
	from := w.before(sentAt)
	w.delivered += bytes
	w.record(now, false)

	rtt := max(now.Sub(sentAt), time.Microsecond)
	w.sampleRTT(rtt, bytes, sentAt, now)
	var rate float64
	if dt := now.Sub(from.at); dt > 0 && dt >= w.minRTT/2 {
		rate = float64(w.delivered-from.total) / dt.Seconds()
		w.rates[w.round] = max(w.rates[w.round], rate)
	}
	if rate > 0 && sentAt.After(w.shrunkAt) && rtt > w.tooLong() {
		w.shrink(rate, now)
	}
	if !sentAt.Before(w.roundStart) {
		w.endRound(now)
	}
}

// Stats returns what the window has found out.
func (w *Window) Stats() WindowStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return WindowStats{Rate: w.rate(), MinRTT: w.minRTT, Window: w.size(w.run()), InFlight: w.inflight}
}

// run is the length of a run in bytes: Run times a power of two, so that runs
// stay aligned and the length does not change with each sample.
func (w *Window) run() uint64 {
	run := w.cfg.Run
	if w.probing {
		return run
	}
	want := w.rate() * runTime.Seconds()
	for 2*run <= w.cfg.MaxRun && float64(2*run) <= want {
		run *= 2
	}
	return run
}

// size is the window in bytes, for runs of so many.
func (w *Window) size(run uint64) uint64 {
	if w.probing {
		return run
	}
	// On top, one run for that which is half received, since it counts as in
	// flight until its last byte; and, when the gain alone does not provide it,
	// half a run, since Next waits for room for a whole one.
	gain, extra := startGain, run
	if !w.starting {
		gain, extra = cruiseGains[w.cycle], run*3/2
		// The shortest answer may be that of a short run; a whole one takes longer.
		extra += run - min(run, w.minBytes)
	}
	bdp := w.scale * gain * w.rate() * w.minRTT.Seconds()
	least := uint64(w.cfg.MinRuns) * run
	return min(w.cfg.Cap, max(least, uint64(min(bdp, float64(w.cfg.Cap)))+extra))
}

func (w *Window) rate() (m float64) {
	for _, r := range w.rates {
		m = max(m, r)
	}
	return m
}

// tooLong is the answer time that counts as inflated: a multiple of that of a
// run which meets an empty link, or as many as may always be in flight.
func (w *Window) tooLong() time.Duration {
	own := float64(w.cfg.MinRuns) * float64(w.run()) / w.rate()
	return time.Duration(w.cfg.Inflation * (float64(w.minRTT) + own*float64(time.Second)))
}

// shrink forgets all rates but that of the last flight, which is what the link
// has given while its queue was long, and takes a step down.
func (w *Window) shrink(rate float64, now time.Time) {
	w.rates = [rateRounds]float64{}
	w.rates[w.round] = rate
	w.scale = max(shrinkLeast, w.scale*shrinkBy)
	w.shrunkAt = now
	w.starting = false
	w.cycle = 1 // drain
	if now.Sub(w.minRTTAt) > minRTTOld {
		// Sending a run takes another time at another rate: measure again, which
		// empties our queue as well.
		w.probing, w.probeStart = true, now
	}
}

func (w *Window) sampleRTT(rtt time.Duration, bytes uint64, sentAt, now time.Time) {
	switch {
	case w.probing && sentAt.After(w.probeStart):
		// The window held one run: this one met an empty link.
		// What follows fills it in one burst, so without a gain.
		w.probing, w.cycle = false, 2
		w.minRTT, w.minRTTAt, w.minBytes = rtt, now, bytes
	case w.minRTT == 0 || rtt <= w.minRTT:
		w.minRTT, w.minRTTAt, w.minBytes = rtt, now, bytes
	case !w.probing && now.Sub(w.minRTTAt) > max(minRTTMaxAge, minRTTAnswers*w.minRTT):
		w.probing, w.probeStart = true, now
	}
}

func (w *Window) endRound(now time.Time) {
	w.roundStart = now
	if w.shrunkAt.Before(now) {
		w.scale = min(1, w.scale*regrowBy)
	}
	count := w.limited && !w.filling && !w.probing
	w.limited, w.filling = false, false
	if !count {
		return
	}
	if w.starting {
		if rate := w.rate(); rate >= w.startRate*startGrowth {
			w.startRate, w.flat = rate, 0
		} else if w.flat++; w.flat >= startRounds {
			w.starting, w.cycle = false, 1
		}
	} else {
		w.cycle = (w.cycle + 1) % len(cruiseGains)
	}
	w.round = (w.round + 1) % rateRounds
	w.rates[w.round] = 0
}

// record puts the present total into the history, unless the last point is so
// recent that the history would not reach back over a few answer times.
func (w *Window) record(now time.Time, always bool) {
	if w.points > 0 {
		last := w.history[(w.points-1)%historySize].at
		if !always && now.Sub(last) < w.minRTT/historySteps {
			return
		}
		if now.Before(last) {
			// Callers read their clocks before they wait for the lock.
			now = last
		}
	}
	w.history[w.points%historySize] = delivery{now, w.delivered}
	w.points++
}

// before returns the last record that is not after t, or the oldest there is.
func (w *Window) before(t time.Time) delivery {
	n := min(w.points, historySize)
	if n == 0 {
		return delivery{at: t, total: w.delivered}
	}
	first := w.points - n
	i := sort.Search(int(n), func(i int) bool {
		return w.history[(first+uint64(i))%historySize].at.After(t)
	})
	return w.history[(first+uint64(max(0, i-1)))%historySize]
}
