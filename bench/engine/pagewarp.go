package engine

import (
	"context"
	"time"

	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate"
)

// Pagewarp is the name of our own engine.
const Pagewarp = "pagewarp"

type pagewarp struct{ name, binary string }

func (p *pagewarp) Name() string { return p.name }

func (p *pagewarp) Available(ctx context.Context) (Facts, error) { return probe(ctx, p.binary) }

// Arrange leaves the memory in a shared file, which pagewarp needs.
func (p *pagewarp) Arrange(c *rig.VMConfig) { c.QEMU, c.PrivateMemory = p.binary, false }

func (p *pagewarp) Move(ctx context.Context, j *Job) (Moved, error) {
	a, b := j.Pair.A, j.Pair.B
	m := Moved{Settings: pagewarpSettings(j)}
	if _, err := a.Daemon.Add(ctx, j.VM.Name, j.VM.QMPPath); err != nil {
		return m, err
	}
	m.Started = j.Begin()
	leg, err := j.Pair.Relocate(ctx, j.VM.Name, a, b, relocate.Options{Codec: j.Codec}, func(s relocate.Status) {
		m.Stopped, m.Resumed = s.Stopped, s.Resumed // a failed relocation has got so far
	})
	if err != nil {
		return m, err
	}
	s := leg.Status
	m.Stopped, m.Resumed, m.BytesReported = s.Stopped, s.Resumed, s.BytesWire
	m.Completed = m.Started.Add(time.Duration(leg.TotalMS * float64(time.Millisecond)))
	m.Fault = &Fault{Latency: report.Latency(s.FaultLatency), Source: "its histogram, from the fault's arrival at the daemon to the install"}
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
