package relocate

import (
	"sync"
	"time"
)

// historySize is how many events a host remembers for `pagewarp events`.
const historySize = 1024

// events is a host's history: a ring of the last events and the subscribers
// that follow it. A subscriber that lags behind by the whole ring misses the
// oldest; sequence numbers show the gap.
type events struct {
	mu   sync.Mutex
	ring []Event       // guarded by mu; at most historySize, oldest first
	seq  uint64        // guarded by mu; of the newest event
	wake chan struct{} // guarded by mu; closed and replaced at each event
}

func newEvents() *events { return &events{wake: make(chan struct{})} }

func (e *events) add(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seq++
	ev.Seq = e.seq
	ev.Time = time.Now()
	if len(e.ring) == historySize {
		e.ring = e.ring[:copy(e.ring, e.ring[1:])]
	}
	e.ring = append(e.ring, ev)
	close(e.wake)
	e.wake = make(chan struct{})
}

// after returns the events newer than seq and a channel that closes at the next.
func (e *events) after(seq uint64) ([]Event, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := len(e.ring)
	for i > 0 && e.ring[i-1].Seq > seq {
		i--
	}
	return append([]Event(nil), e.ring[i:]...), e.wake
}

// subscribe sends every event newer than seq until cancel is called, which
// waits until the sender has stopped. The channel is then closed.
func (e *events) subscribe(seq uint64) (<-chan Event, func()) {
	var (
		out  = make(chan Event, 16)
		stop = make(chan struct{})
		done = make(chan struct{})
		once sync.Once
	)
	go func() {
		defer close(done)
		defer close(out)
		for {
			evs, wake := e.after(seq)
			for _, ev := range evs {
				select {
				case out <- ev:
					seq = ev.Seq
				case <-stop:
					return
				}
			}
			select {
			case <-wake:
			case <-stop:
				return
			}
		}
	}()
	return out, func() {
		once.Do(func() { close(stop) })
		<-done
	}
}
