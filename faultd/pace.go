package faultd

import (
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/sched"
)

// DefaultDemandPace is what the daemon uses: with 0.2 ms the drain of a guest that
// touches memory at random took 1.2 times as long, with 1 ms no less (docs/PRECACHE.md).
const DefaultDemandPace = 500 * time.Microsecond

// What [Config.DemandPace] goes by.
const (
	// paceBurst is how many sends may follow each other at once: a guest that
	// faults now and then is never held.
	paceBurst = 32
	// CPUs count as short from where on the precache workers wait for one for so
	// much of their time, in 1/1024, and no more from where on it is so little: they
	// wait less while faults are held.
	paceShort  = 1024 / 5
	paceEnough = 1024 / 16
	// paceWeight is that of the latest install in the share's average, as a shift.
	paceWeight = 4
	// paceStale is how long after a worker's last install nothing is known.
	paceStale = 5 * time.Millisecond
	// paceLate is how long after its time a send is made by the timer, if no
	// precache worker has come by.
	paceLate = time.Millisecond
)

// pacer spaces the sends of demand fetches where the CPUs are short. A guest that
// touches its memory at random then gains nothing by each fault but the next one; a
// fault costs both hosts as much CPU as some twenty pages of precache do, and those it
// needs as well. With faults served as fast as may be, precache starves, and the guest
// crawls for longer than if it had stood still (docs/PRECACHE.md has the figures). On
// CPUs that have time to spare, or without precache, no fault is ever held.
type pacer struct {
	gap   int64        // ns from one send to the next; 0: no pacing
	begin time.Time    // what the times below count from, monotonic
	tat   atomic.Int64 // ns: when the next send is due if there were no burst (GCRA, ITU-T I.371)
	lost  atomic.Int64 // share of the time that precache waits for a CPU, in 1/1024
	seen  atomic.Int64 // ns: when lost was updated
	short atomic.Bool  // that share is too large
	held  atomic.Bool  // faults are in the queue, waiting for their time
	timer *time.Timer  // sends them if nobody else does
}

func (p *pacer) init(gap time.Duration, send func()) {
	if gap <= 0 {
		return
	}
	p.gap, p.begin = int64(gap), time.Now()
	p.timer = time.AfterFunc(time.Hour, send)
	p.timer.Stop()
}

func (p *pacer) now() int64 { return int64(time.Since(p.begin)) }

// worked notes that a precache worker has worked for so much of the clock's time and so
// much of a CPU's.
func (p *pacer) worked(wall, cpu time.Duration) {
	if wall <= 0 {
		return
	}
	share := int64(max(0, wall-cpu)) * 1024 / int64(wall)
	lost := p.lost.Load() // what another worker adds meanwhile may be lost
	lost += (share - lost) >> paceWeight
	p.lost.Store(lost)
	p.seen.Store(p.now())
	if short := p.short.Load(); !short && lost > paceShort || short && lost < paceEnough {
		p.short.Store(!short)
	}
}

// on reports whether precache is under way and waits for CPUs.
func (p *pacer) on(now int64) bool {
	return p.short.Load() && now-p.seen.Load() < int64(paceStale)
}

// wait returns how long the next send has to wait; at 0 it counts as made. The caller
// holds sendMu.
func (p *pacer) wait() time.Duration {
	if p.gap == 0 {
		return 0
	}
	now := p.now()
	tat := max(p.tat.Load(), now)
	if p.on(now) && tat-now > (paceBurst-1)*p.gap {
		return time.Duration(tat - now - (paceBurst-1)*p.gap)
	}
	p.tat.Store(min(tat, now+(paceBurst-1)*p.gap) + p.gap)
	return 0
}

// clock is a worker's time at the start of some work.
type clock struct {
	wall time.Time
	cpu  time.Duration
}

// start begins to measure a worker's work, where it is to be measured.
func (p *pacer) start() (c clock) {
	if p.gap != 0 {
		c = clock{time.Now(), sched.ThreadCPU()}
	}
	return c
}

// stop ends what start began.
func (p *pacer) stop(c clock) {
	if p.gap != 0 {
		p.worked(time.Since(c.wall), sched.ThreadCPU()-c.cpu)
	}
}

// hold leaves the queued faults to the next precache worker that comes by after d, or
// to the timer.
func (p *pacer) hold(d time.Duration) {
	p.held.Store(true)
	p.timer.Reset(d + paceLate)
}

func (p *pacer) stopTimer() {
	if p.timer != nil {
		p.timer.Stop()
	}
}
