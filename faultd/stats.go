package faultd

import (
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/hist"
	"github.com/pagewarp/pagewarp/pagecache"
)

// engineStats are the engine's counters; all fields may be used at any time.
type engineStats struct {
	reads, faults, faultsInstalling, faultsResident, faultsDup atomic.Uint64
	zeroShown, overflows, busy, removes                        atomic.Uint64
	sends, paced, demandFetches, precacheFetches, gated        atomic.Uint64
	pagesDemand, pagesPrecache, pagesZero                      atomic.Uint64
	expectedRuns, expectedPages, expectedLate                  atomic.Uint64
	early                                                      preStats
	duplicates, aborts, refused, retries, damage               atomic.Uint64
	demandWire, precacheWire                                   atomic.Uint64
	pagesSame, pagesMoved, movedGone, bytesSame, candidatesBad atomic.Uint64
	drain                                                      atomic.Int64

	local, queue, wire, decode, install, total hist.Histogram
	preWire, preDecode, preInstall             hist.Histogram
}

// recorders are one channel's shares of the histograms.
type recorders struct {
	queue, wire, decode, install, total *hist.Recorder
	preWire, preDecode, preInstall      *hist.Recorder
}

func (s *engineStats) recorders() *recorders {
	return &recorders{
		queue: s.queue.Recorder(), wire: s.wire.Recorder(), decode: s.decode.Recorder(),
		install: s.install.Recorder(), total: s.total.Recorder(),
		preWire: s.preWire.Recorder(), preDecode: s.preDecode.Recorder(), preInstall: s.preInstall.Recorder(),
	}
}

func (s *engineStats) retire(r *recorders) {
	s.queue.Retire(r.queue)
	s.wire.Retire(r.wire)
	s.decode.Retire(r.decode)
	s.install.Retire(r.install)
	s.total.Retire(r.total)
	s.preWire.Retire(r.preWire)
	s.preDecode.Retire(r.preDecode)
	s.preInstall.Retire(r.preInstall)
}

// ChannelStats is the state of one channel.
type ChannelStats struct {
	Kind    string `json:"kind"`
	Index   int    `json:"index"`
	Up      bool   `json:"up"`
	Opens   uint64 `json:"opens"`                // connections so far
	LastErr string `json:"last_error,omitempty"` // of the connection before
}

// Stats is what an engine has done until now. Counters only grow.
type Stats struct {
	PagesTotal    uint64   `json:"pages_total"`
	PagesLeft     uint64   `json:"pages_left"`     // neither resident nor zero
	PagesDemand   uint64   `json:"pages_demand"`   // installed from demand answers
	PagesPrecache uint64   `json:"pages_precache"` // installed from precache answers
	PagesZero     uint64   `json:"pages_zero"`     // learnt to be zero
	PagesSame     uint64   `json:"pages_same"`     // of those installed, taken from the candidates
	PagesMoved    uint64   `json:"pages_moved"`    // of those installed, taken from the candidates of other pages
	MovedGone     uint64   `json:"moved_gone"`     // pages whose candidate elsewhere was there no more, fetched again
	BytesSame     uint64   `json:"bytes_same"`     // of both
	PreTransfer   PreStats `json:"pre_transfer"`
	// Expected is what Expect has had fetched; the pages are among PagesDemand.
	Expected   ExpectStats `json:"expected"`
	BytesTotal uint64      `json:"bytes_total"`
	BytesLeft  uint64      `json:"bytes_left"`

	Faults           uint64 `json:"faults"`            // read from the source
	FaultReads       uint64 `json:"fault_reads"`       // batches in which they came
	FaultsInstalling uint64 `json:"faults_installing"` // met a page on its way in
	FaultsResident   uint64 `json:"faults_resident"`   // met a page that was in
	FaultsZero       uint64 `json:"faults_zero"`       // zero pages shown
	FaultsDup        uint64 `json:"faults_dup"`        // met a fetch under way
	Overflows        uint64 `json:"overflows"`         // faults that found as many fetches under way as may be
	Removes          uint64 `json:"removes"`           // ranges that the machine gave back
	Busy             uint64 `json:"busy"`              // retries because of a changing layout

	DemandFetches   uint64 `json:"demand_fetches"`
	DemandSends     uint64 `json:"demand_sends"` // writes in which they went
	DemandPaced     uint64 `json:"demand_paced"` // of these, held for Config.DemandPace
	PrecacheFetches uint64 `json:"precache_fetches"`
	Gated           uint64 `json:"gated"`          // precache fetches held back by demand
	Duplicates      uint64 `json:"duplicates"`     // pages received and dropped
	Aborts          uint64 `json:"aborts"`         // claims given up
	Refused         uint64 `json:"refused"`        // fetches the source refused
	CandidatesBad   uint64 `json:"candidates_bad"` // confirmed, but not what was offered any more
	Retries         uint64 `json:"retries"`        // fetches sent again
	Outstanding     int    `json:"outstanding"`
	DemandBytes     uint64 `json:"demand_bytes"`   // on the wire
	PrecacheBytes   uint64 `json:"precache_bytes"` // on the wire

	Channels []ChannelStats         `json:"channels"`
	Planner  pagecache.Stats        `json:"-"`
	Elapsed  time.Duration          `json:"-"` // since Start
	Drain    time.Duration          `json:"-"` // from Start to the release; 0 before
	Drained  bool                   `json:"drained"`
	Stages   map[Stage]Distribution `json:"-"`
}

// Distribution is a distribution of durations: Count, Mean, Max, Quantile (of 0 to 1, within
// 1 %), and Merge with another. The zero value is empty.
type Distribution = hist.Snapshot

// Stage names a part of a fault's or a precache batch's time.
type Stage string

// The stages. A demand fault's Total is Queue + Wire + Decode + Install.
const (
	StageQueue   Stage = "queue"   // from the fault's reading to its fetch in the socket
	StageWire    Stage = "wire"    // until the last byte of the answer
	StageDecode  Stage = "decode"  // verifying and decoding
	StageInstall Stage = "install" // committing, mapping, waking
	StageTotal   Stage = "total"   // from the fault's reading to the waking
	StageLocal   Stage = "local"   // faults that needed no fetch

	StagePrecacheWire    Stage = "precache_wire"
	StagePrecacheDecode  Stage = "precache_decode"
	StagePrecacheInstall Stage = "precache_install"
)

// Stats returns a copy of the counters and histograms. It costs some hundred
// µs; call it some times a second, not in a loop.
func (e *Engine) Stats() Stats {
	s := &e.stats
	out := Stats{
		PagesDemand: s.pagesDemand.Load(), PagesPrecache: s.pagesPrecache.Load(), PagesZero: s.pagesZero.Load(),
		Faults: s.faults.Load(), FaultReads: s.reads.Load(), FaultsInstalling: s.faultsInstalling.Load(),
		FaultsResident: s.faultsResident.Load(), FaultsZero: s.zeroShown.Load(), FaultsDup: s.faultsDup.Load(),
		Overflows: s.overflows.Load(), Removes: s.removes.Load(), Busy: s.busy.Load(),
		DemandFetches: s.demandFetches.Load(), DemandSends: s.sends.Load(), DemandPaced: s.paced.Load(), PrecacheFetches: s.precacheFetches.Load(),
		Gated: s.gated.Load(), Duplicates: s.duplicates.Load(), Aborts: s.aborts.Load(), Refused: s.refused.Load(),
		Retries: s.retries.Load(), Outstanding: e.out.inUse(),
		PagesSame: s.pagesSame.Load(), PagesMoved: s.pagesMoved.Load(), MovedGone: s.movedGone.Load(), BytesSame: s.bytesSame.Load(), CandidatesBad: s.candidatesBad.Load(),
		PreTransfer: s.early.stats(),
		Expected:    ExpectStats{Runs: s.expectedRuns.Load(), Pages: s.expectedPages.Load(), Late: s.expectedLate.Load()},
		DemandBytes: s.demandWire.Load(), PrecacheBytes: s.precacheWire.Load(),
		Planner: e.planner.Stats(), Elapsed: e.elapsed(), Drain: time.Duration(s.drain.Load()),
		Stages: map[Stage]Distribution{
			StageQueue: s.queue.Snapshot(), StageWire: s.wire.Snapshot(), StageDecode: s.decode.Snapshot(),
			StageInstall: s.install.Snapshot(), StageTotal: s.total.Snapshot(), StageLocal: s.local.Snapshot(),
			StagePrecacheWire: s.preWire.Snapshot(), StagePrecacheDecode: s.preDecode.Snapshot(),
			StagePrecacheInstall: s.preInstall.Snapshot(),
		},
	}
	select {
	case <-e.drained:
		out.Drained = true
	default:
	}
	for i := range e.cfg.Regions {
		r := &e.cfg.Regions[i]
		left := r.Residency.Remaining()
		out.PagesTotal += r.Pages
		out.PagesLeft += left
		out.BytesTotal += r.Pages * uint64(r.PageSize)
		out.BytesLeft += left * uint64(r.PageSize)
	}
	for _, c := range e.demand {
		out.Channels = append(out.Channels, c.stats())
	}
	for _, c := range e.pre {
		out.Channels = append(out.Channels, c.stats())
	}
	return out
}

func (c *channel) stats() ChannelStats {
	s := ChannelStats{Kind: c.kind.String(), Index: c.index, Up: c.up.Load(), Opens: c.opens.Load()}
	if t := c.lastErr.Load(); t != nil {
		s.LastErr = *t
	}
	return s
}

// ResetLatencies empties the histograms: for a benchmark's warm-up.
func (e *Engine) ResetLatencies() {
	s := &e.stats
	for _, h := range []*hist.Histogram{&s.local, &s.queue, &s.wire, &s.decode, &s.install, &s.total,
		&s.preWire, &s.preDecode, &s.preInstall} {
		h.Reset()
	}
}
