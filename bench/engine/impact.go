package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/internal/guestapi"
)

const (
	beforeSpan = 3 * time.Second // before the command, that tells the throughput
	backShare  = 0.9             // of it, as the mean of backBins bins, is warm
	backBins   = 3
	deadShare  = 0.01 // a bin below this share of it is a standstill
)

// bin is what was done in a span of time; times are counted from the command.
type bin struct {
	from, to time.Duration
	n        float64
}

// moments of a relocation, counted from the command.
type moments struct{ stopped, resumed, completed time.Duration }

// impact is what a relocation did to the throughput.
type impact struct {
	perSecond float64        // operations before the command
	warm      *time.Duration // from the switch-over until back at 90 %; nil if never seen
	worst     time.Duration  // longest standstill from the command on, downtime included
	lost      float64        // operations missing against the rate before, at least 0
	after     time.Duration  // observed from the switch-over on
}

// assess evaluates bins, which are in order and without gaps. Throughput is
// back at the first three bins in a row that begin at warmFrom at the earliest
// and have a mean of 90 %. Lost operations are summed up, excesses deducted, from
// the command until throughput is back and memory complete: without an end, the
// noise of an undisturbed guest would add up.
func assess(bins []bin, at moments, warmFrom time.Duration) (im impact, err error) {
	var sum float64
	var span time.Duration
	for _, b := range bins {
		if b.from >= -beforeSpan && b.to <= 0 {
			sum += b.n
			span += b.to - b.from
		}
	}
	if sum == 0 || span < beforeSpan/2 {
		return im, fmt.Errorf("%.0f operations were counted in the %v before the command: too few to compare with", sum, span)
	}
	im.perSecond = sum / span.Seconds()
	end := bins[len(bins)-1].to
	if end <= at.resumed {
		return im, errors.New("nothing was counted after the switch-over")
	}
	im.after = end - at.stopped
	until := end
	for i := 0; i+backBins <= len(bins); i++ {
		if bins[i].from < warmFrom {
			continue
		}
		var n float64
		for _, b := range bins[i : i+backBins] {
			n += b.n
		}
		if length := bins[i+backBins-1].to - bins[i].from; n/length.Seconds() >= backShare*im.perSecond {
			warm := bins[i].from - at.stopped
			im.warm = &warm
			until = max(bins[i].from, at.completed)
			break
		}
	}
	var still time.Duration
	for _, b := range bins {
		length := b.to - b.from
		if b.to <= 0 || length <= 0 {
			continue
		}
		if b.from >= 0 && b.to <= until {
			im.lost += im.perSecond*length.Seconds() - b.n
		}
		if b.n/length.Seconds() >= deadShare*im.perSecond {
			still = 0
			continue
		}
		still += length
		im.worst = max(im.worst, still)
	}
	im.worst, im.lost = max(im.worst, at.resumed-at.stopped), max(im.lost, 0)
	return im, nil
}

// guestBins turns the guest's counts into bins of the host's time. zero is when,
// by the host's clock, the guest's read zero; it stands still while the guest is
// down. The bin in which the guest stopped is divided: its operations are taken
// to be spread evenly over the time in which the guest ran.
func guestBins(counts []guestapi.TouchBin, zero, command time.Time, at moments) []bin {
	offset := zero.Sub(command) // guest time + offset = time from the command, until the stop
	down := at.resumed - at.stopped
	var bins []bin
	for i := 1; i < len(counts); i++ {
		from, to := time.Duration(counts[i-1].TNS)+offset, time.Duration(counts[i].TNS)+offset
		n := float64(counts[i].N)
		switch {
		case to <= from:
		case to <= at.stopped:
			bins = append(bins, bin{from, to, n})
		case from >= at.stopped:
			bins = append(bins, bin{from + down, to + down, n})
		default:
			share := (at.stopped - from).Seconds() / (to - from).Seconds()
			bins = append(bins, bin{from, at.stopped, n * share}, bin{at.stopped, at.resumed, 0}, bin{at.resumed, to + down, n * (1 - share)})
		}
	}
	return bins
}
