package engine

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/bench/demo"
	"github.com/pagewarp/pagewarp/bench/load"
	"github.com/pagewarp/pagewarp/bench/specweb"
	"github.com/pagewarp/pagewarp/bench/specweb/model"
	"github.com/pagewarp/pagewarp/bench/workloads"
	"github.com/pagewarp/pagewarp/bench/workloads/resp"
	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// binLength is that of the clients' logs.
const binLength = load.BinLength

// observer watches a guest at work.
type observer interface {
	// finish ends the load, if it is one from outside, and tells what was seen
	// around a relocation by the given command. The observer is of no use after.
	finish(ctx context.Context, command time.Time, at moments) (observation, error)
}

// settler is an observer whose load takes a while until it is what it will be.
type settler interface {
	// settled says that it is.
	settled() bool
}

const (
	settleLimit = 45 * time.Second
	settleEvery = 50 * time.Millisecond
)

// settle waits until a load is what it will be, for settleLimit at most: what came
// before is no measure of what is lost. It returns a note if that was too short.
func settle(ctx context.Context, o observer) (note string, err error) {
	s, ok := o.(settler)
	if !ok {
		return "", nil
	}
	for end := time.Now().Add(settleLimit); !s.settled(); {
		if time.Now().After(end) {
			return fmt.Sprintf("the load was not under way yet %v after its start: the throughput before the command is too low", settleLimit), nil
		}
		if err := sleep(ctx, settleEvery); err != nil {
			return "", err
		}
	}
	return "", nil
}

// noter is an observer with something to say of its load.
type noter interface{ note() string }

// observation is what a load saw.
type observation struct {
	bins []bin
	// blackout is the longest time without a right answer from the command on;
	// nil for a load without a client.
	blackout *time.Duration
	wrong    uint64   // answers that were not what they must be
	errors   []string // the first of each kind
}

// unit names the operations of a load.
func unit(l workloads.Load) string {
	switch l.Kind {
	case workloads.Web:
		return "requests"
	case guestapi.LoadChurn:
		return "pages rewritten"
	case guestapi.LoadIdle:
		return "ticks"
	case guestapi.LoadRedis:
		return "commands"
	}
	if strings.HasPrefix(l.Kind, guestapi.SPECwebPrefix) {
		return "web pages"
	}
	return "touches"
}

// observe starts the client of a load, or for one without a client notes the
// guest's clock.
func observe(ctx context.Context, l workloads.Load, client *rig.Host, g guestapi.Config) (observer, error) {
	switch {
	case l.Kind == workloads.Web:
		r, err := load.Start(ctx, load.Config{Base: demo.URL(g), Dial: client.Dial})
		return &webObserver{r}, err
	case l.Kind == guestapi.LoadRedis:
		keys := redisKeys(l)
		r, err := resp.Start(ctx, resp.Config{
			Addr: netip.AddrPortFrom(g.IP.Addr(), guestapi.RedisPort).String(), Keys: keys, Writes: 0.2, Dial: client.Dial,
		})
		return &redisObserver{r, keys}, err
	case strings.HasPrefix(l.Kind, guestapi.SPECwebPrefix):
		return observeSpecweb(ctx, l, client, g)
	}
	var s guestapi.Stats
	if err := demo.GetJSON(ctx, client, demo.URL(g)+"/stats", &s); err != nil {
		return nil, err
	}
	return &guestObserver{client, g, time.Now().Add(-time.Duration(s.UptimeNS))}, nil
}

func observeSpecweb(ctx context.Context, l workloads.Load, client *rig.Host, g guestapi.Config) (observer, error) {
	name := strings.TrimPrefix(l.Kind, guestapi.SPECwebPrefix)
	if _, err := model.ByName(name); err != nil {
		return nil, err
	}
	host := g.IP.Addr().String()
	r, err := specweb.Start(ctx, specweb.Config{
		Workload: name, Sessions: g.Sessions, Scale: g.Scale, Seed: 1, Dial: client.Dial,
		Plain: "http://" + host + ":" + strconv.Itoa(g.Port), Secure: "https://" + host + ":" + strconv.Itoa(g.TLSPort),
	})
	return &specwebObserver{r, g.Sessions}, err
}

// guestObserver reads what the guest has counted by itself.
type guestObserver struct {
	client *rig.Host
	guest  guestapi.Config
	zero   time.Time // when the guest's clock read zero, by the host's
}

func (o *guestObserver) finish(ctx context.Context, command time.Time, at moments) (observation, error) {
	asked := time.Since(command)
	var counts []guestapi.TouchBin
	if err := demo.GetJSON(ctx, o.client, demo.URL(o.guest)+"/touches", &counts); err != nil {
		return observation{}, err
	}
	bins := guestBins(counts, o.zero, command, at)
	// What the guest did while it answered was disturbed by the question.
	for len(bins) > 0 && bins[len(bins)-1].to > asked {
		bins = bins[:len(bins)-1]
	}
	return observation{bins: bins}, nil
}

// span returns the whole bins of a client's log that are laid so that one of
// them begins at the switch-over: the first one's start and their number.
func span(start, end, command time.Time, at moments) (from time.Time, n int) {
	stop := command.Add(at.stopped)
	if stop.After(end) { // never reached
		stop = command
	}
	from = stop.Add(-stop.Sub(start) / binLength * binLength)
	return from, int(end.Sub(from) / binLength)
}

// clientBins makes bins of n counts from a time on.
func clientBins(from, command time.Time, n int, count func(i int) int) []bin {
	bins := make([]bin, n)
	for i := range bins {
		begin := from.Add(time.Duration(i) * binLength).Sub(command)
		bins[i] = bin{begin, begin + binLength, float64(count(i))}
	}
	return bins
}

// seen fills in what all clients have in common; gap is in ms.
func seen(bins []bin, gap float64, wrong int, errors []string) observation {
	blackout := time.Duration(gap * float64(time.Millisecond))
	return observation{bins: bins, blackout: &blackout, wrong: uint64(wrong), errors: errors}
}

type webObserver struct{ run *load.Run }

func (o *webObserver) finish(_ context.Context, command time.Time, at moments) (observation, error) {
	l := o.run.Stop()
	from, n := span(l.Start, l.End, command, at)
	counts := l.Bins(from, from.Add(time.Duration(n)*binLength))
	s := l.Summary(l.Start, l.End)
	return seen(clientBins(from, command, n, func(i int) int { return counts[i].Count }),
		l.LongestGap(command, l.End).LengthMS, s.Corrupt+s.Refused, s.FirstErrors), dropped(s.Dropped)
}

type redisObserver struct {
	run  *resp.Run
	keys int
}

// maxRedisKeys is what can be set in some seconds under TCG.
const maxRedisKeys = 20_000

// redisKeys is how many values of 1 KiB there are: half of what Redis may keep, since
// each key costs more than its value.
func redisKeys(l workloads.Load) int { return min(max(l.WorkingSetMiB, 1)<<10/2, maxRedisKeys) }

// note says how much there is, which a large ws does not.
func (o *redisObserver) note() string {
	return fmt.Sprintf("Redis has %d values of 1 KiB", o.keys)
}

func (o *redisObserver) finish(_ context.Context, command time.Time, at moments) (observation, error) {
	l := o.run.Stop()
	from, n := span(l.Start, l.End, command, at)
	counts := l.Bins(from, from.Add(time.Duration(n)*binLength))
	s := l.Summary(l.Start, l.End)
	return seen(clientBins(from, command, n, func(i int) int { return counts[i].Count }),
		l.Summary(command, l.End).LongestGap.LengthMS, s.Wrong, s.FirstErrors), dropped(s.Dropped)
}

type specwebObserver struct {
	run      *specweb.Run
	sessions int
}

// sessionPages is how many pages a session of SPECweb's Banking is, about: by then
// most have been through their login, which is TLS and slow under TCG, once.
const sessionPages = 4

func (o *specwebObserver) settled() bool {
	counts, active := o.run.Progress()
	return active >= o.sessions && counts.Pages() >= sessionPages*o.sessions
}

func (o *specwebObserver) finish(_ context.Context, command time.Time, at moments) (observation, error) {
	l := o.run.Stop()
	from, n := span(l.Start, l.End, command, at)
	counts := l.Bins(from, from.Add(time.Duration(n)*binLength))
	s := l.Summary(l.Start, l.End)
	return seen(clientBins(from, command, n, func(i int) int { return counts[i].Pages() - counts[i].Errors }),
		l.LongestGap(command, l.End).LengthMS, s.Corrupt+s.Refused, s.FirstErrors), dropped(s.Dropped)
}

// dropped: a log that is not complete tells nothing.
func dropped(n uint64) error {
	if n > 0 {
		return fmt.Errorf("%d answers were not noted for want of room: choose a lighter load, or watch for less time", n)
	}
	return nil
}
