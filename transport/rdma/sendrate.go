package rdma

import "time"

// What a rate of SENDs is taken from, at least, once there is one.
const (
	rateBytes = 256 << 10
	rateTime  = 20 * time.Millisecond
)

// sendRate finds the rate of a link from SENDs: bytes that were acknowledged, over the time
// in which there were some to be. It is told of every SEND and looks at the completions
// before each, so that a queue that has run dry unseen is no slow link.
type sendRate struct {
	rate   float64 // bytes a second; 0: not known
	queued int     // bytes under way
	acked  int     // bytes since
	since  time.Time
}

// posted says that a message of n bytes was sent.
func (r *sendRate) posted(n int, now time.Time) {
	if r.queued == 0 {
		r.since, r.acked = now, 0
	}
	r.queued += n
}

// came says that a message of n bytes was acknowledged.
func (r *sendRate) came(n int) { r.queued, r.acked = r.queued-n, r.acked+n }

// look draws its conclusions from all that has come until now. If waited, the last message
// came just now: somebody has slept for it.
func (r *sendRate) look(now time.Time, waited bool) {
	took := now.Sub(r.since)
	if r.acked == 0 || took <= 0 {
		return
	}
	rate := float64(r.acked) / took.Seconds()
	switch {
	case r.queued == 0 && !waited: // for how long there was nothing is not known
		if r.rate != 0 {
			r.rate = max(r.rate, rate)
		}
	case r.rate == 0:
		r.rate = rate
	case r.acked >= rateBytes || took >= rateTime:
		r.rate += (rate - r.rate) / 4
	default:
		return
	}
	r.since, r.acked = now, 0
}

// narrow says that one message at a time is to be sent: nothing is known of the link yet,
// and what is chosen by its rate had better not fill the queue before.
func (r *sendRate) narrow() bool { return r.rate == 0 && r.queued > 0 }
