package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/pagewarp/pagewarp/bench/load"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// URL is the address of the guest's web server.
func URL(g guestapi.Config) string {
	return "http://" + netip.AddrPortFrom(g.IP.Addr(), uint16(g.Port)).String()
}

// CheckGuest has the guest verify its whole working set and returns what it
// found, then and ever.
func CheckGuest(ctx context.Context, client *rig.Host, g guestapi.Config) (v guestapi.Verify, s guestapi.Stats, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := GetJSON(ctx, client, URL(g)+"/verify", &v); err != nil {
		return v, s, err
	}
	if v.Pages == 0 {
		return v, s, errors.New("the guest has verified no page at all: it has no working set")
	}
	return v, s, GetJSON(ctx, client, URL(g)+"/stats", &s)
}

// BadPages is how many checks of pages have failed in a guest, by what CheckGuest
// returned; touches that were lost count as one. The guest's own count has those that
// failed in the verification, too.
func BadPages(v guestapi.Verify, s guestapi.Stats) uint64 {
	bad := max(s.BadPages, v.Bad)
	if v.TouchesMissing != 0 {
		bad++
	}
	return bad
}

// GetJSON asks the guest from the client's host. A request whose connection
// could not be made is repeated until ctx ends: a guest that has just moved
// answers when the network has learnt where it is.
func GetJSON(ctx context.Context, client *rig.Host, url string, v any) error {
	for {
		once, cancel := context.WithTimeout(ctx, 20*time.Second)
		body, err := client.Get(once, url)
		cancel()
		if err == nil {
			if err := json.Unmarshal(body, v); err != nil {
				return fmt.Errorf("answer from %s: %w", url, err)
			}
			return nil
		}
		if sleep(ctx, load.Backoff) != nil {
			return fmt.Errorf("ask the guest: %w", err)
		}
	}
}

// webLoad is the clients' load on the guest.
type webLoad struct{ run *load.Run }

func startLoad(ctx context.Context, r *run) (*webLoad, error) {
	l, err := load.Start(ctx, load.Config{Base: URL(r.guest), Conns: r.Workers, Dial: r.pair.Client.Dial})
	return &webLoad{l}, err
}

func (w *webLoad) stop() { w.run.Stop() }

// lookBack is how far before the switch-over a gap counts as its doing.
const lookBack = time.Second

// finish ends the load and fills in what the client saw of the switch-over.
func (w *webLoad) finish(switchover time.Time, rep *report.Report) error {
	log := w.run.Stop()
	all := log.Summary(log.Start, log.End)
	before := log.Summary(switchover.Add(-3*time.Second), switchover)
	after := log.Summary(log.End.Add(-3*time.Second), log.End)
	rep.ClientBlackoutMS = log.LongestGap(switchover.Add(-lookBack), log.End).LengthMS
	rep.Integrity.ClientErrors = uint64(all.Corrupt + all.Refused)
	rep.Load = report.Load{
		Requests: uint64(all.Good), Errors: uint64(all.Failed + all.Refused + all.Corrupt), FirstErrors: all.FirstErrors,
		BeforePerSec: before.PerSecond, AfterPerSec: after.PerSecond, BlackoutMS: rep.ClientBlackoutMS,
		ObservedAfter: log.End.Sub(switchover).Seconds(),
	}
	if d, err := log.Warmup90(switchover); err == nil {
		v := ms(d)
		rep.Warmup90MS = &v
	} else if before.Good == 0 {
		return fmt.Errorf("the client got no answer before the switch-over: %v", all.FirstErrors)
	}
	rep.Timeline = &report.Timeline{BeforePerSec: before.PerSecond}
	// Bins are laid so that one begins at the switch-over.
	from := switchover.Add(-switchover.Sub(log.Start) / load.BinLength * load.BinLength)
	bins := log.Bins(from, log.End)
	counts := make([]uint64, max(len(bins)-1, 0)) // the last may be cut short
	for i := range counts {
		counts[i] = uint64(bins[i].Count)
	}
	rep.Timeline.AddBins(from, switchover, load.BinLength, counts)
	return nil
}
