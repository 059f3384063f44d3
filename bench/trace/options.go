package trace

import (
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/pagecache"
)

// Options of one simulation. Zero values mean the defaults.
type Options struct {
	// Policies is a list as MakePolicies takes it. Default "default".
	Policies string
	// Make, if not nil, makes the policies instead; Policies is their name.
	Make func(t *Trace) []pagecache.Policy

	RTT       time.Duration // of the network; default 100 µs
	Bandwidth float64       // of the link in bit/s; default 10e9
	Loss      float64       // share of segments lost, 0 to 0.2
	Fair      bool          // the link serves connections by turns, not in the order of arrival
	VCPUs     int           // default: the trace's
	Limit     time.Duration // of simulated time; default 10 min
	Seed      uint64        // of the losses

	// What the engine is set to; the defaults are faultd's and the daemon's.
	Precache    int    // channels; default 2
	Demand      int    // channels; default 1
	RunPages    uint32 // the most of one fetch; default 32
	WindowBytes uint64 // default 16 MiB
	GateHold    time.Duration
	ReadAround  uint32  // default 1
	Cap         float64 // of precache in bytes/s; 0 is none

	// What the machines take; the defaults are what floors gave on two cores.
	LocalFault  time.Duration // kernel and wake-ups of a fault; default 30 µs
	ServeDemand time.Duration // the source's work for a demand fetch; default 5 µs
	ServePage   time.Duration // the source's work for a page of precache, on one channel; default 2 µs
	TakePage    time.Duration // the destination's, on one channel; default 1 µs
	Ratio       float64       // bytes on the wire for a byte of a page; default: the trace's
}

func (o *Options) fill(t *Trace) error {
	if o.Policies == "" {
		o.Policies = "default"
	}
	for d, def := range map[*time.Duration]time.Duration{
		&o.RTT: 100 * time.Microsecond, &o.Limit: 10 * time.Minute, &o.GateHold: 50 * time.Microsecond,
		&o.LocalFault: 30 * time.Microsecond, &o.ServeDemand: 5 * time.Microsecond,
		&o.ServePage: 2 * time.Microsecond, &o.TakePage: time.Microsecond,
	} {
		if *d == 0 {
			*d = def
		}
	}
	for v, def := range map[*int]int{&o.Precache: 2, &o.Demand: 1, &o.VCPUs: max(t.VCPUs, 1)} {
		if *v == 0 {
			*v = def
		}
	}
	for v, def := range map[*float64]float64{&o.Bandwidth: 10e9, &o.Ratio: t.Link.WireRatio} {
		if *v == 0 {
			*v = def
		}
	}
	if o.Ratio == 0 {
		o.Ratio = 1
	}
	if o.RunPages == 0 {
		o.RunPages = 32
	}
	if o.WindowBytes == 0 {
		o.WindowBytes = 16 << 20
	}
	if o.ReadAround == 0 {
		o.ReadAround = 1
	}
	return o.check()
}

func (o *Options) check() error {
	switch {
	case o.RTT < 0 || o.RTT > 10*time.Second:
		return fmt.Errorf("round trip of %v: up to 10 s are possible", o.RTT)
	case !(o.Bandwidth >= 1e6 && o.Bandwidth <= 1e13):
		return fmt.Errorf("bandwidth of %g bit/s: 1e6 to 1e13 are possible", o.Bandwidth)
	case !(o.Loss >= 0 && o.Loss <= 0.2):
		return fmt.Errorf("loss of %g: 0 to 0.2 are possible", o.Loss)
	case o.VCPUs < 1 || o.VCPUs > 1024:
		return fmt.Errorf("%d vCPUs: 1 to 1024 are possible", o.VCPUs)
	case o.Limit <= 0:
		return fmt.Errorf("limit of %v: give a time", o.Limit)
	case o.Precache < 1 || o.Precache > 64 || o.Demand < 1 || o.Demand > 64:
		return fmt.Errorf("%d precache and %d demand channels: 1 to 64 are possible", o.Precache, o.Demand)
	case o.ReadAround&(o.ReadAround-1) != 0 || o.ReadAround > 256:
		return fmt.Errorf("read-around of %d pages: a power of two up to 256 is possible", o.ReadAround)
	case !(o.Ratio > 0 && o.Ratio <= 2):
		return fmt.Errorf("wire ratio of %g: more than 0 and at most 2 are possible", o.Ratio)
	}
	return nil
}
