package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/bench/fault"
	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// FloorShare is the share of the stream floor that precache of incompressible
// memory promises to reach.
const FloorShare = 0.8

// LinkBytesPerSec is the limited link: 1 Gbit/s.
const LinkBytesPerSec = 125_000_000

// Options of a measurement. Zero values mean the defaults.
type Options struct {
	// MiB is the size of the image over loopback. Default 512.
	MiB int
	// LinkMiB is that over the limited link. Default 256. Negative leaves that
	// part, which needs root, out.
	LinkMiB int
	// Repeat is how many passes. Default 3.
	Repeat int
	// Precache is the number of channels. Default 2.
	Precache int
	TLS      bool
	// CPUs says where the two ends run.
	CPUs floor.CPUs
	// Step, if not nil, is told what goes on.
	Step func(string)
}

func (o *Options) fill() {
	if o.MiB == 0 {
		o.MiB = 512
	}
	if o.LinkMiB == 0 {
		o.LinkMiB = 256
	}
	if o.Repeat == 0 {
		o.Repeat = 3
	}
	if o.Precache == 0 {
		o.Precache = 2
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
}

// Pass is one stream and its floor.
type Pass struct {
	FloorBytesPerSec float64 `json:"floor_bytes_per_s,omitempty"`
	// GuestBytesPerSec is memory made resident, WireBytesPerSec what crossed.
	GuestBytesPerSec float64                   `json:"guest_bytes_per_s"`
	WireBytesPerSec  float64                   `json:"wire_bytes_per_s"`
	Stages           map[string]report.Latency `json:"stages_us"`
}

// Result is all passes.
type Result struct {
	TLS bool `json:"tls"`
	// Channels are those for precache; MiB and LinkMiB are the sizes of the images.
	Channels int `json:"channels"`
	MiB      int `json:"loopback_mib"`
	LinkMiB  int `json:"link_mib,omitempty"`
	// Loopback moves incompressible memory over loopback.
	Loopback []Pass `json:"loopback"`
	// Link moves half-compressible memory over a link of LinkBytesPerSec.
	Link []Pass `json:"link_1gbit"`
}

// Run alternates the stream floor and precache. With an error the result has the
// passes that were finished, and is nil without any.
func Run(ctx context.Context, o Options) (*Result, error) {
	o.fill()
	r := &Result{TLS: o.TLS, Channels: o.Precache, MiB: o.MiB, LinkMiB: max(o.LinkMiB, 0)}
	err := o.loopback(ctx, r)
	if err == nil && o.LinkMiB >= 0 {
		err = o.link(ctx, r)
	}
	if len(r.Loopback) == 0 {
		return nil, err
	}
	return r, err
}

func (o *Options) loopback(ctx context.Context, r *Result) error {
	im, err := fault.NewImage(fault.ImageOptions{Pages: uint64(o.MiB) << 20 / 4096})
	if err != nil {
		return err
	}
	defer im.Close()
	for i := range o.Repeat {
		o.Step(fmt.Sprintf("pass %d of %d: %d MiB over loopback, incompressible", i+1, o.Repeat, o.MiB))
		// Over TLS the floor is the plain stream all the same: it is what the
		// machine can do.
		f, err := o.floor(ctx)
		if err != nil {
			return err
		}
		p, err := o.pass(ctx, im, fault.Options{CPUs: o.CPUs, Precache: o.Precache, TLS: o.TLS})
		if err != nil {
			return err
		}
		p.FloorBytesPerSec = f
		r.Loopback = append(r.Loopback, p)
	}
	return nil
}

// floor takes that of one pass.
func (o *Options) floor(ctx context.Context) (float64, error) {
	bytes := int64(o.MiB) << 20
	ctx, cancel := fault.Bounded(ctx, uint64(bytes), 0)
	defer cancel()
	f, err := floor.Stream(ctx, o.CPUs, floor.Loopback, bytes, false)
	return f, fault.Because(ctx, err)
}

// link runs the page server and the fault daemon in two namespaces.
func (o *Options) link(ctx context.Context, r *Result) (err error) {
	im, err := fault.NewImage(fault.ImageOptions{Pages: uint64(o.LinkMiB) << 20 / 4096, Half: true})
	if err != nil {
		return err
	}
	defer im.Close()
	hosts, err := rig.New("a", "b")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hosts.Close()) }()
	a, b := hosts.Host("a"), hosts.Host("b")
	if err := a.Shape(rig.Shape{BytesPerSecond: LinkBytesPerSec}); err != nil {
		return err
	}
	for i := range o.Repeat {
		o.Step(fmt.Sprintf("pass %d of %d: %d MiB over 1 Gbit/s, half compressible", i+1, o.Repeat, o.LinkMiB))
		p, err := o.pass(ctx, im, fault.Options{
			CPUs: o.CPUs, Precache: o.Precache, TLS: o.TLS, Source: a.Command, Destination: b.Command,
			Addr: netip.AddrPortFrom(b.Addr, 0).String(),
		})
		if err != nil {
			return err
		}
		r.Link = append(r.Link, p)
	}
	return nil
}

// pass moves one image.
func (o *Options) pass(ctx context.Context, im *fault.Image, fo fault.Options) (p Pass, err error) {
	link := uint64(0)
	if fo.Source != nil {
		link = LinkBytesPerSec
	}
	ctx, cancel := fault.Bounded(ctx, im.Pages*4096, link)
	defer cancel()
	defer func() { err = fault.Because(ctx, err) }()
	e, err := fault.NewEngine(ctx, im, fo)
	if err != nil {
		return p, err
	}
	defer e.Close()
	if err := e.Precache(); err != nil {
		return p, err
	}
	s, err := e.Drain()
	if err != nil {
		return p, err
	}
	seconds := s.Elapsed.Seconds()
	p.GuestBytesPerSec = float64(im.Pages*4096) / seconds
	p.WireBytesPerSec = float64(s.BytesWire) / seconds
	all, err := e.Stats()
	if err != nil {
		return p, err
	}
	p.Stages = map[string]report.Latency{}
	for name, l := range all.Stages {
		if l.Count > 0 {
			p.Stages[name] = report.Latency(l)
		}
	}
	return p, e.Verify()
}

func spread(ps []Pass, f func(Pass) float64) report.Spread {
	var vs []float64
	for _, p := range ps {
		vs = append(vs, f(p))
	}
	return report.SpreadOf(vs)
}

// Verdicts compares with what is promised, of plain connections.
func (r *Result) Verdicts() []report.Verdict {
	vs := []report.Verdict{{
		Name: "precache, incompressible", Unit: "x floor", Promised: FloorShare, AtLeast: true, Info: r.TLS,
		Value: spread(r.Loopback, func(p Pass) float64 { return p.GuestBytesPerSec / p.FloorBytesPerSec }),
	}}
	if len(r.Link) > 0 {
		vs = append(vs, report.Verdict{
			Name: "precache, half compressible, 1 Gbit/s", Unit: "x link", Promised: 1, AtLeast: true, Info: r.TLS,
			Value: spread(r.Link, func(p Pass) float64 { return p.GuestBytesPerSec / LinkBytesPerSec }),
		})
	}
	return report.Measured(vs)
}

// Text writes the rates and the verdicts.
func (r *Result) Text(w io.Writer) error {
	var rows [][]string
	for _, m := range []struct {
		name   string
		passes []Pass
	}{{"loopback, incompressible", r.Loopback}, {"1 Gbit/s, half compressible", r.Link}} {
		for i, p := range m.passes {
			f := "-"
			if p.FloorBytesPerSec > 0 {
				f = rate(p.FloorBytesPerSec)
			}
			rows = append(rows, []string{m.name, fmt.Sprint(i + 1), f, rate(p.GuestBytesPerSec), rate(p.WireBytesPerSec)})
		}
	}
	if err := report.Table(w, []string{"precache", "pass", "floor", "guest", "wire"}, rows); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return report.Verdicts(w, r.Verdicts())
}

func rate(v float64) string { return humanize.Bytes(uint64(v)) + "/s" }
