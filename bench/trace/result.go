package trace

import (
	"time"

	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/pagecache"
)

// Result is what a simulation found.
type Result struct {
	Policies   string  `json:"policies"`
	RTTMS      float64 `json:"rtt_ms"`
	BitsPerSec float64 `json:"bits_per_s"`
	Loss       float64 `json:"loss"`
	VCPUs      int     `json:"vcpus"`

	Pages   uint64  `json:"pages"`
	Drained bool    `json:"drained"`
	DrainS  float64 `json:"drain_s"` // until every page was there; 0 if that was not seen
	GuestS  float64 `json:"guest_s"` // until the guest had touched all of the trace
	AloneS  float64 `json:"alone_s"` // the same if every page had been there
	Touches uint64  `json:"touches"`

	Faults        uint64 `json:"faults"` // touches of absent pages
	Joined        uint64 `json:"joined"` // of them, those that met a fetch under way
	ZeroFaults    uint64 `json:"zero_faults"`
	DemandFetches uint64 `json:"demand_fetches"`
	DemandPages   uint64 `json:"demand_pages"`
	DemandBytes   uint64 `json:"demand_bytes"`

	PrecacheFetches uint64 `json:"precache_fetches"`
	PrecachePages   uint64 `json:"precache_pages"`
	PrecacheBytes   uint64 `json:"precache_bytes"`
	Gated           uint64 `json:"gated"`
	Duplicates      uint64 `json:"duplicates"` // pages received and dropped
	LostSegments    uint64 `json:"lost_segments"`

	StallS  float64        `json:"stall_s"` // vCPU-seconds
	Latency report.Latency `json:"fault_latency_us"`
	// Warmup90S is when the guest was back at 90 % of its speed for good; the
	// area is the work that was lost meanwhile, in vCPU-seconds: StallS.
	Warmup90S float64 `json:"warmup90_s"`
	// NotWarm: it was not before the limit of simulated time, which Warmup90S is then.
	NotWarm bool    `json:"not_warm,omitempty"`
	BinMS   float64 `json:"bin_ms"`
	// Speed is the share of vCPU time not stalled, Resident that of the pages
	// there, for each bin; T in seconds.
	Speed    []report.Point          `json:"speed"`
	Resident []report.Point          `json:"resident"`
	ByPolicy []pagecache.PolicyStats `json:"by_policy"`
	TookMS   float64                 `json:"took_ms"` // of real time
}

const binWidth = 10 * time.Millisecond

// warmShare is the speed at which a guest counts as warm.
const warmShare = 0.9

// progress counts stalled vCPU time by bins.
type progress struct {
	cpus    int
	stalled int
	at      time.Duration
	bins    []time.Duration // stalled vCPU time
	alive   []time.Duration // vCPU time
	lat     []time.Duration // of faults on absent pages
	stall   time.Duration
}

func (p *progress) start(cpus int) { p.cpus = cpus }

// advance spreads the time since the last change over the bins.
func (p *progress) advance(now time.Duration) {
	for p.at < now {
		i := int(p.at / binWidth)
		for len(p.bins) <= i {
			p.bins, p.alive = append(p.bins, 0), append(p.alive, 0)
		}
		end := min(now, time.Duration(i+1)*binWidth)
		p.bins[i] += (end - p.at) * time.Duration(p.stalled)
		p.alive[i] += (end - p.at) * time.Duration(p.cpus)
		p.at = end
	}
}

func (p *progress) stalls(now time.Duration) { p.advance(now); p.stalled++ }
func (p *progress) ends(now time.Duration)   { p.advance(now); p.cpus-- }
func (p *progress) resumes(now, took time.Duration, absent bool) {
	p.advance(now)
	p.stalled--
	p.stall += took
	if absent {
		p.lat = append(p.lat, took)
	}
}

// sample notes the share of memory that is there, once a bin.
func (s *simulation) sample() {
	s.res.Resident = append(s.res.Resident, report.Point{T: s.now.Seconds(),
		V: 1 - float64(s.planner.Remaining())/float64(s.res.Pages)})
	if !s.res.Drained && (s.running > 0 || s.on) {
		s.after(binWidth, s.sample)
	}
}

// finish computes what follows from the counts.
func (s *simulation) finish() {
	r := &s.res
	r.Policies, r.RTTMS, r.BitsPerSec, r.Loss, r.VCPUs = s.o.Policies, float64(s.o.RTT)/1e6, s.o.Bandwidth, s.o.Loss, s.o.VCPUs
	s.meter.advance(s.now)
	var think time.Duration
	for _, t := range s.trace.Touches {
		think += t.Think
	}
	r.AloneS = think.Seconds() / float64(s.o.VCPUs)
	r.LostSegments = s.link.lost
	r.ByPolicy = s.planner.Stats().Policies
	r.BinMS = float64(binWidth) / 1e6
	r.Latency = report.Summarize(s.meter.lat)
	r.StallS = s.meter.stall.Seconds()
	for i, stalled := range s.meter.bins {
		if s.meter.alive[i] == 0 {
			break
		}
		v := 1 - float64(stalled)/float64(s.meter.alive[i])
		at := time.Duration(i) * binWidth
		r.Speed = append(r.Speed, report.Point{T: at.Seconds(), V: v})
		if v < warmShare {
			r.Warmup90S = (at + binWidth).Seconds()
		}
		r.NotWarm = v < warmShare && s.running > 0
	}
}
