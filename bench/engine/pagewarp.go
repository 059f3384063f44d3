package engine

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate"
)

const (
	// Pagewarp is the name of our own engine.
	Pagewarp = "pagewarp"
	// OnDemand is our own engine without precache: pages go only when they are
	// touched, so a relocation is complete only if the guest touches all.
	OnDemand = "pagewarp-on-demand"
	// PreTransfer is our own engine that copies the memory before the switch-over.
	PreTransfer = "pagewarp-pre-transfer"
	// onDemandSpan is how long a relocation on demand is measured from the
	// guest's resumption on.
	onDemandSpan = 5 * time.Second
)

type pagewarp struct {
	name, binary string
	onDemand     bool
	early        bool // with a pre-transfer
}

func (p *pagewarp) Name() string { return p.name }

func (p *pagewarp) Available(ctx context.Context) (Facts, error) { return probe(ctx, p.binary) }

// Arrange leaves the memory in a shared file, which pagewarp needs.
func (p *pagewarp) Arrange(c *rig.VMConfig) { c.QEMU, c.PrivateMemory = p.binary, false }

func (p *pagewarp) Move(ctx context.Context, j *Job) (Moved, error) {
	a, b := j.Pair.A, j.Pair.B
	m := Moved{Settings: pagewarpSettings(j)}
	if p.onDemand {
		m.Settings = "without precache: pages go only when touched; " + m.Settings
	}
	if p.early {
		m.Settings = "with a pre-transfer; " + m.Settings
	}
	if _, err := a.Daemon.Add(ctx, j.VM.Name, j.VM.QMPPath); err != nil {
		return m, err
	}
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	var last relocate.Status // of a failed or unfinished relocation, too
	seenAll := false
	span := cmp.Or(j.Span, onDemandSpan)
	m.Started = j.Begin()
	leg, err := j.Pair.Relocate(ctx, j.VM.Name, a, b, relocate.Options{Codec: j.Codec, OnDemandOnly: p.onDemand, PreTransfer: p.early, Precache: j.Precache}, func(s relocate.Status) {
		last = s
		if p.onDemand && !s.Resumed.IsZero() && time.Since(s.Resumed) >= span {
			seenAll = true
			enough()
		}
	})
	m.Stopped, m.Resumed, m.BytesReported, m.Status = last.Stopped, last.Resumed, last.BytesWire+last.BytesPreTransfer, &last
	if p.early {
		m.Notes = append(m.Notes, fmt.Sprintf("%.1f MB before the switch-over, in %.2f s and %d passes; %.1f MB after it; %d of %d candidates confirmed",
			float64(last.BytesPreTransfer)/1e6, last.PreTransferMS/1e3, last.PreTransferPass, float64(last.BytesWire)/1e6, last.PagesSame, last.PagesCandidate))
	}
	switch {
	case err == nil:
		// As of QEMU's own: that the source's QEMU ends, and its memory is freed, comes
		// after it. Both daemons have this host's clock.
		m.Completed = leg.Status.Drained
	case seenAll:
		m.Notes = append(m.Notes, fmt.Sprintf("%d of %d pages were still at the source %v after the guest had resumed", last.PagesRemaining, last.PagesTotal, span))
	default:
		return m, err
	}
	m.Fault = &Fault{Latency: report.Latency(last.FaultLatency), Source: "its histogram, to within 1 %, from the fault's arrival at the daemon to the install"}
	return m, nil
}

func pagewarpSettings(j *Job) string {
	codec := j.Codec
	if codec == "" {
		codec = "auto"
	}
	security := "no TLS"
	if j.TLS {
		security = "mutual TLS"
	}
	return "defaults, codec " + codec + ", " + security + "; its time includes starting the destination's QEMU"
}
