package pagecache

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// poolPause bounds what [Share.Delay] says: the rate, or who competes, may change
// meanwhile.
const poolPause = 100 * time.Millisecond

// Pool shares a rate of bytes on the wire between the sessions of a host, max-min
// fair: each member has a bucket, what the rate yields is divided equally between
// the buckets that are not full, and a member that uses less than its part leaves
// the rest to the others (Bertsekas and Gallager, Data Networks, 6.5.2). Over a time
// t all members together take at most rate × t and a bucket each. Its methods and
// those of its shares may be called concurrently; the number of members is up to
// the caller.
type Pool struct {
	capped atomic.Bool // rate is not 0: looked at before mu is taken

	mu      sync.Mutex // guards the rest, and the tokens of the members
	rate    float64    // bytes/s; 0: no limit
	burst   float64    // bytes; of each bucket
	members []*Share
	at      time.Time // when the tokens were right
}

// NewPool returns a pool of rate bytes per second, 0 for no limit.
func NewPool(rate uint64) *Pool {
	p := new(Pool)
	p.SetRate(rate, time.Now())
	return p
}

// SetRate changes the rate to so many bytes per second from now on, 0 for no limit.
// Buckets start anew: full, and without debt.
func (p *Pool) SetRate(rate uint64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate, p.burst, p.at = float64(rate), float64(max(rate/50, 1<<20)), now
	for _, s := range p.members {
		s.tokens = p.burst
	}
	p.capped.Store(rate != 0)
}

// Rate returns the rate in bytes per second, 0 if there is no limit.
func (p *Pool) Rate() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return uint64(p.rate)
}

// Join adds a member, until its Leave.
func (p *Pool) Join() *Share {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refill(time.Now())
	s := &Share{pool: p, tokens: p.burst}
	p.members = append(p.members, s)
	return s
}

// refill divides what the rate has yielded. mu is held.
func (p *Pool) refill(now time.Time) {
	dt := now.Sub(p.at).Seconds()
	if dt <= 0 {
		return
	}
	p.at = now
	amount := min(p.rate*dt, 2*p.burst*float64(len(p.members))) // all of them, from the deepest debt
	// Each round fills a bucket or hands all out.
	for range p.members {
		hungry := p.hungry()
		part := amount / float64(hungry)
		if hungry == 0 || part < 1 {
			return
		}
		for _, s := range p.members {
			got := min(part, p.burst-s.tokens)
			s.tokens += got
			amount -= got
		}
	}
}

// hungry counts the buckets that are not full. mu is held.
func (p *Pool) hungry() (n int) {
	for _, s := range p.members {
		if s.tokens < p.burst {
			n++
		}
	}
	return n
}

// Share is one session's part of a [Pool]. A nil one has no limit.
type Share struct {
	pool   *Pool
	tokens float64 // guarded by pool.mu; bytes, negative: debt
}

// Capped reports whether the pool has a limit at the moment.
func (s *Share) Capped() bool { return s != nil && s.pool.capped.Load() }

// Delay returns how long to wait before sending, 0 unless the share is in debt. It
// is at most 100 ms: ask again then.
func (s *Share) Delay(now time.Time) time.Duration {
	if !s.Capped() {
		return 0
	}
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refill(now)
	if s.tokens >= 0 || p.rate == 0 {
		return 0
	}
	ns := -s.tokens / p.rate * float64(max(1, p.hungry())) * float64(time.Second)
	return time.Duration(min(ns, float64(poolPause))) + 1
}

// Charge takes bytes that precache has taken, or is about to; negative ones were
// charged too much.
func (s *Share) Charge(bytes int64, now time.Time) {
	if !s.Capped() {
		return
	}
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	s.pool.refill(now)
	s.tokens = min(s.pool.burst, s.tokens-float64(bytes))
}

// Demand takes bytes that faults have taken, which nothing holds back. The precache
// of the same session pays for them; what is more than one bucket of debt the
// others pay, so that the host's traffic stays at its rate as long as there is
// precache to hold back.
func (s *Share) Demand(bytes int64, now time.Time) {
	if !s.Capped() {
		return
	}
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refill(now)
	s.tokens -= float64(bytes)
	excess := -p.burst - s.tokens
	if excess <= 0 {
		return
	}
	s.tokens = -p.burst
	if others := len(p.members) - 1; others > 0 {
		for _, o := range p.members {
			if o != s {
				o.tokens = math.Max(-p.burst, o.tokens-excess/float64(others))
			}
		}
	}
}

// Leave ends the membership; the share has no limit from then on.
func (s *Share) Leave() {
	if s == nil {
		return
	}
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, m := range p.members {
		if m == s {
			p.members = append(p.members[:i], p.members[i+1:]...)
			break
		}
	}
}
