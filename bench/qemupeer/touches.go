package qemupeer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pagewarp/pagewarp/internal/guestapi"
)

const (
	beforeSpan  = 3 * time.Second // that tells the throughput before
	slowShare   = 0.9             // of it, on the mean of recoverBins, is recovered
	recoverBins = 3
	deadShare   = 0.01 // a bin below this share of it is a standstill
)

// impact is what a relocation did to the guest's throughput, by its own count.
type impact struct {
	perSecond float64       // touches before
	slow      time.Duration // until it was back at 90 % of that, downtime included
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
	im.after = max(time.Duration(bins[len(bins)-1].TNS)-at, 0)
	first := 1 + slices.IndexFunc(bins[1:], func(b guestapi.TouchBin) bool { return time.Duration(b.TNS) > at })
	if first == 0 {
		return im, errors.New("the guest counted nothing after the switch-over")
	}
	im.slow = downtime + im.after // unless it recovered
	for i := first; i+recoverBins <= len(bins); i++ {
		var n uint64
		for _, b := range bins[i : i+recoverBins] {
			n += b.N
		}
		begin := time.Duration(bins[i-1].TNS)
		length := time.Duration(bins[i+recoverBins-1].TNS) - begin
		if float64(n)/length.Seconds() >= slowShare*im.perSecond {
			im.slow = downtime + max(begin-at, 0)
			break
		}
	}
	still := downtime
	im.worst = downtime
	for i := first; i < len(bins); i++ {
		length := time.Duration(bins[i].TNS - bins[i-1].TNS)
		if float64(bins[i].N)/length.Seconds() >= deadShare*im.perSecond {
			still = 0
			continue
		}
		still += length
		im.worst = max(im.worst, still)
	}
	return im, nil
}
