package pagecache

import (
	"sync"
	"time"
)

// Limiter is a token bucket for bytes on the wire. What a run will take on the
// wire is known only once it has been answered, so a caller asks Delay before
// it sends and tells Charge what it took: the bucket may go into debt, and the
// rate holds over any time longer than the debt. Its methods may be called
// concurrently.
type Limiter struct {
	mu     sync.Mutex // guards the rest
	rate   float64    // bytes/s; 0: no limit
	burst  float64    // bytes
	tokens float64    // bytes; negative: debt
	at     time.Time  // when tokens was right
}

// NewLimiter returns a limiter of rate bytes per second, 0 for none, whose
// bucket holds burst bytes and is full.
func NewLimiter(rate, burst uint64) *Limiter {
	return &Limiter{rate: float64(rate), burst: float64(burst), tokens: float64(burst)}
}

// SetRate changes the rate to so many bytes per second from now on, 0 for none.
// A debt remains and is paid at the new rate; it is forgiven with the limit.
func (l *Limiter) SetRate(rate uint64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill(now)
	l.rate = float64(rate)
	if rate == 0 {
		l.tokens = l.burst
	}
}

// Rate returns the rate in bytes per second, 0 if there is no limit.
func (l *Limiter) Rate() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(l.rate)
}

// Charge takes bytes out of the bucket, whether they are in it or not. Negative
// bytes give back what was charged too much.
func (l *Limiter) Charge(bytes int64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill(now)
	if l.rate != 0 {
		l.tokens = min(l.burst, l.tokens-float64(bytes))
	}
}

// Delay returns how long to wait before sending: 0 unless the bucket is in debt.
func (l *Limiter) Delay(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill(now)
	if l.rate == 0 || l.tokens >= 0 {
		return 0
	}
	// Rounded up, and so that a debt of centuries does not overflow.
	ns := -l.tokens / l.rate * float64(time.Second)
	return time.Duration(min(ns, float64(time.Hour))) + 1
}

func (l *Limiter) refill(now time.Time) {
	if dt := now.Sub(l.at); dt > 0 {
		if !l.at.IsZero() {
			l.tokens = min(l.burst, l.tokens+l.rate*dt.Seconds())
		}
		l.at = now
	}
}
