package qemupeer

import (
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/internal/guestapi"
)

const (
	beforeSpan = 3 * time.Second // that tells the throughput before
	slowShare  = 0.9             // a bin below this share of it is slow
	deadShare  = 0.01            // a bin below this share of it is a standstill
)

// impact is what a relocation did to the guest's throughput, by its own count.
type impact struct {
	perSecond float64       // touches before
	slow      time.Duration // time below 90 % of that, downtime included
	worst     time.Duration // longest standstill, downtime included
	after     time.Duration // guest time observed after the switch-over
}

// measure evaluates the guest's bins. at is the guest's clock at the
// switch-over; the clock stands still while the guest is down, so the downtime
// is added. A bin that a stalled guest closed late is as long as its times say.
func measure(bins []guestapi.TouchBin, at, downtime time.Duration) (im impact, err error) {
	var sum uint64
	var span time.Duration
	for i := 1; i < len(bins); i++ {
		end := time.Duration(bins[i].TNS)
		if end <= at && end > at-beforeSpan {
			sum += bins[i].N
			span += end - time.Duration(bins[i-1].TNS)
		}
	}
	if sum == 0 || span < beforeSpan/2 {
		return im, fmt.Errorf("the guest counted %d touches in the %v before the switch-over: too few to compare with", sum, span)
	}
	im.perSecond = float64(sum) / span.Seconds()
	still := downtime
	im.slow, im.worst = downtime, downtime
	for i := 1; i < len(bins); i++ {
		end, begin := time.Duration(bins[i].TNS), time.Duration(bins[i-1].TNS)
		if end <= at {
			continue
		}
		length := end - begin
		im.after = end - at
		rate := float64(bins[i].N) / length.Seconds()
		if rate < slowShare*im.perSecond {
			im.slow += length
		}
		if rate < deadShare*im.perSecond {
			still += length
			im.worst = max(im.worst, still)
		} else {
			still = 0
		}
	}
	return im, nil
}
