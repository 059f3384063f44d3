package relocate

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/rdma"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// Ways for the pages of a relocation.
const (
	TransportTCP  = "tcp"  // over the channels' connections
	TransportRDMA = "rdma" // by RDMA READ; it fails where that cannot be had
	// TransportAuto is by RDMA READ where both hosts' policies are RDMAAuto and it
	// can be had, else TCP.
	TransportAuto = "auto"
)

// Transports are the values of Options.Transport.
var Transports = []string{TransportTCP, TransportRDMA, TransportAuto}

// A host's policies on RDMA, whose bytes nobody encrypts.
const (
	RDMAOff  = "off"  // never
	RDMAAsk  = "ask"  // where a relocation asks for "rdma"; the default
	RDMAAuto = "auto" // for relocations with "auto" as well
)

// RDMAPolicies are the values of RDMAConfig.Policy.
var RDMAPolicies = []string{RDMAOff, RDMAAsk, RDMAAuto}

// RDMAPins are the values of Options.RDMAPin.
var RDMAPins = []string{string(rdma.PinLazy), string(rdma.PinAll), string(rdma.PinODP)}

// Values of Options.RDMALost.
const (
	RDMALostTCP  = "tcp"
	RDMALostWait = "wait"
)

// RDMALosts are the values of Options.RDMALost.
var RDMALosts = []string{RDMALostTCP, RDMALostWait}

// Ways for precache where a relocation has RDMA, values of Options.RDMAPrecache.
const (
	RDMAPrecacheRead = "read" // by READ, as it is in memory
	RDMAPrecacheSend = "send" // by SEND, with the codec
	RDMAPrecacheTCP  = "tcp"  // over the connections, with the codec
)

// RDMAPrecaches are the values of Options.RDMAPrecache.
var RDMAPrecaches = []string{RDMAPrecacheRead, RDMAPrecacheSend, RDMAPrecacheTCP}

// RDMAConfig is a host's say on RDMA.
type RDMAConfig struct {
	Policy string // empty: RDMAAsk
	// Device is "device", "device:port" or a network interface; empty: what is
	// behind the address over which the peer is reached.
	Device string
	// Budget bounds the memory that a relocation registers at each end, in
	// bytes; 0: none but RLIMIT_MEMLOCK.
	Budget uint64
}

var errPolicy = errors.New("this host's policy does not allow RDMA")

// rdmaDevice opens the device for a session whose peer is reached from local. It
// is nil, without an error, where TCP is the answer to want; reason then says why.
func (h *Host) rdmaDevice(want string, local net.Addr) (dev *rdma.Device, reason string, err error) {
	policy := cmp.Or(h.cfg.RDMA.Policy, RDMAAsk)
	switch {
	case want == "" || want == TransportTCP:
		return nil, "", nil
	case want == TransportRDMA && policy == RDMAOff:
		return nil, "", fmt.Errorf("%w (rdma.policy is %q)", errPolicy, policy)
	case want == TransportAuto && policy != RDMAAuto:
		return nil, fmt.Sprintf("rdma.policy is %q, not %q", policy, RDMAAuto), nil
	}
	dev, err = h.openRDMA(local)
	if err != nil && want == TransportAuto {
		return nil, err.Error(), nil
	}
	return dev, "", err
}

func (h *Host) openRDMA(local net.Addr) (*rdma.Device, error) {
	if !rdma.Built {
		return nil, rdma.ErrNotBuilt
	}
	var addr netip.Addr
	if t, ok := local.(*net.TCPAddr); ok {
		addr = t.AddrPort().Addr().Unmap()
	}
	port, gid, err := rdma.Choose(h.cfg.RDMA.Device, addr)
	if err != nil {
		return nil, err
	}
	return rdma.Open(port, gid)
}

// checkRDMA checks the options that concern RDMA.
func checkRDMA(o *Options) error {
	if o.Transport != "" && !slices.Contains(Transports, o.Transport) {
		return fmt.Errorf("transport %q: choose one of %q", o.Transport, Transports)
	}
	if o.RDMALost != "" && !slices.Contains(RDMALosts, o.RDMALost) {
		return fmt.Errorf("rdma_lost %q: choose one of %q", o.RDMALost, RDMALosts)
	}
	if o.RDMAPrecache != "" && !slices.Contains(RDMAPrecaches, o.RDMAPrecache) {
		return fmt.Errorf("rdma_precache %q: choose one of %q", o.RDMAPrecache, RDMAPrecaches)
	}
	if o.RDMALand != "" && !slices.Contains(RDMALands, o.RDMALand) {
		return fmt.Errorf("rdma_land %q: choose one of %q", o.RDMALand, RDMALands)
	}
	_, err := rdma.ParsePin(o.RDMAPin)
	return err
}

// RDMAStatus is what RDMA does in a relocation. The counters are the
// destination's, which READs; the source shows them too.
type RDMAStatus struct {
	Device  string `json:"device"` // of the host that says it
	Port    int    `json:"port"`
	Address string `json:"address"` // of the GID in use

	ReadsPosted    uint64 `json:"reads_posted"`
	ReadsCompleted uint64 `json:"reads_completed"`
	// ReadsRetried are those posted that did not complete; their pages were
	// fetched again.
	ReadsRetried uint64 `json:"reads_retried"`
	ReadBytes    uint64 `json:"read_bytes"`
	// PagesInPlace landed in the guest's memory by themselves; the others were copied
	// out of a staging buffer.
	PagesInPlace uint64 `json:"pages_in_place"`
	// Messages are answers that came by SEND, MessageBytes what they were on the wire;
	// Recalled are fetches that might have had such an answer and were sent again by
	// TCP, after RDMA was lost.
	Messages     uint64 `json:"messages"`
	MessageBytes uint64 `json:"message_bytes"`
	Recalled     uint64 `json:"recalled"`
	// SendBuildMS is the source's time for making them (encoding, copying, checksums),
	// SendWaitMS that for which answers waited for the link, of all channels together;
	// shown there.
	SendBuildMS float64 `json:"send_build_ms,omitempty"`
	SendWaitMS  float64 `json:"send_wait_ms,omitempty"`
	// TCPFetches are fetches that TCP answered on channels that have RDMA, too: of
	// memory not registered yet, or not at all, or after RDMA was lost.
	TCPFetches uint64 `json:"tcp_fetches"`
	// Fallbacks counts channels that lost RDMA, LastFallback says why the last did.
	Fallbacks    uint64 `json:"fallbacks"`
	LastFallback string `json:"last_fallback,omitempty"`
	ChannelsUp   int    `json:"channels_up"` // whose pages come by RDMA
	// Registered is the pinned memory, in bytes, of the host that says it: at the source
	// of the image, at the destination of what pages land in.
	Registered uint64 `json:"registered_bytes"`
}

// with is s with the counters of d, which may both be nil.
func (s *RDMAStatus) with(d *RDMAStatus) *RDMAStatus {
	switch {
	case d == nil:
		return s
	case s == nil:
		return d
	}
	own := *d
	own.Device, own.Port, own.Address, own.Registered = s.Device, s.Port, s.Address, s.Registered
	own.SendBuildMS, own.SendWaitMS = s.SendBuildMS, s.SendWaitMS
	return &own
}

// statusOf names a device.
func statusOf(dev *rdma.Device) *RDMAStatus {
	name, port, addr := dev.Port()
	return &RDMAStatus{Device: name, Port: port, Address: addr.String()}
}

// fillRDMA adds the READs of this session to a status. The caller holds the
// transfer's lock.
func (in *incoming) fillRDMA(s *Status) {
	if s.RDMA == nil {
		return
	}
	own := *s.RDMA // others may be reading the last one
	n := &in.reads
	own.ReadsPosted, own.ReadsCompleted, own.ReadsRetried = n.Posted.Load(), n.Completed.Load(), n.Retried.Load()
	own.ReadBytes, own.TCPFetches, own.PagesInPlace = n.Bytes.Load(), n.Beneath.Load(), n.InPlace.Load()
	own.Messages, own.MessageBytes, own.Recalled = n.Messages.Load(), n.MessageBytes.Load(), n.Recalled.Load()
	if land := in.landing.Load(); land != nil {
		own.Registered = land.Registered()
	}
	own.Fallbacks, own.ChannelsUp = n.Fallbacks.Load(), int(n.Up.Load())
	if why := in.rdmaLost.Load(); why != nil {
		own.LastFallback = *why
	}
	s.RDMA = &own
}

// fillRDMA adds what only the source knows to its status. The caller holds the
// transfer's lock.
func (o *outgoing) fillRDMA(s *Status) {
	if s.RDMA == nil || o.export == nil {
		return
	}
	own, sent := *s.RDMA, o.export.Sent()
	own.Registered = o.export.Registered()
	own.SendBuildMS, own.SendWaitMS = float64(sent.Building.Load())/1e6, float64(sent.Waited.Load())/1e6
	s.RDMA = &own
}

// offerRDMA gets the source ready for RDMA, before the offer: the device is open
// and the image's files are, nothing is registered. It settles Options.Transport.
func (o *outgoing) offerRDMA(local net.Addr) error {
	opt := &o.rec.Options
	dev, reason, err := o.host.rdmaDevice(opt.Transport, local)
	if err != nil {
		return fmt.Errorf("pages by RDMA: %w", err)
	}
	if dev == nil {
		o.plainTransport(reason)
		return nil
	}
	if err := o.exportBy(dev); err != nil {
		if opt.Transport == TransportRDMA {
			return fmt.Errorf("pages by RDMA: %w", err)
		}
		o.plainTransport(err.Error())
	}
	return nil
}

// exportBy opens the image for READs; it owns dev.
func (o *outgoing) exportBy(dev *rdma.Device) error {
	export, err := o.newExport(dev)
	if err != nil {
		dev.Close()
		return err
	}
	o.rdmaDev, o.export = dev, export
	o.update(func(s *Status) { s.RDMA = statusOf(dev) })
	o.note("channel", "pages can be read by RDMA through "+dev.String()+"; nothing encrypts them on the wire")
	return nil
}

func (o *outgoing) newExport(dev *rdma.Device) (*rdma.Export, error) {
	var sources []rdma.Source
	for i, m := range o.rec.Memory {
		path := m.Path
		if m.Object != "" {
			// The memory itself: its holes can be found, a freeze of the object, which is
			// for its VMM, does not keep the rest of it from being pinned, and no kernel
			// refuses to (from 6.5 on none pins a writable mapping of the node).
			f, err := m.open()
			if err != nil {
				return nil, err
			}
			defer f.Close()
			path = fmt.Sprintf("/proc/self/fd/%d", f.Fd())
		}
		sources = append(sources, rdma.Source{Region: o.rec.Regions[i], Path: path})
	}
	pin, _ := rdma.ParsePin(o.rec.Options.RDMAPin) // checked before
	return rdma.NewExport(dev, sources, rdma.ExportOptions{Pin: pin, Budget: o.host.cfg.RDMA.Budget, DeadAfter: o.host.tuning().DeadAfter, Report: func(err error) {
		o.warn("pages go by TCP where RDMA cannot bring them", "err", err)
	}})
}

// plainTransport says that pages go by TCP; a reason is there if "auto" was asked.
func (t *transfer) plainTransport(reason string) {
	if t.rec.Options.Transport == TransportAuto && reason != "" {
		t.note("channel", "pages go by TCP, not by RDMA: "+reason)
	}
	t.rec.Options.Transport = TransportTCP
	t.update(func(s *Status) { s.Options.Transport = TransportTCP })
}

// closeRDMA takes every key of the image back. The channels have ended.
func (o *outgoing) closeRDMA() {
	if o.export == nil {
		return
	}
	if err := errors.Join(o.export.Close(), o.rdmaDev.Close()); err != nil {
		o.warn("RDMA was not taken down in order", "err", err)
	}
	o.export, o.rdmaDev = nil, nil
}

// acceptRDMA gets the destination ready for what the offer says.
func (in *incoming) acceptRDMA(local net.Addr) error {
	dev, reason, err := in.host.rdmaDevice(in.rec.Options.Transport, local)
	if err != nil {
		return fmt.Errorf("pages by RDMA, at the destination: %w", err)
	}
	if dev == nil {
		in.plainTransport(reason)
		return nil
	}
	in.note("channel", "pages come by RDMA through "+dev.String()+"; nothing encrypts them on the wire")
	in.useRDMA(dev)
	return nil
}

func (in *incoming) useRDMA(dev *rdma.Device) {
	in.rdmaDev.Store(dev)
	in.update(func(s *Status) { s.RDMA = statusOf(dev) })
}

// localTo is the address of this host from which a peer is reached. Nothing is
// sent.
func localTo(peer string) net.Addr {
	c, err := net.Dial("udp", peer)
	if err != nil {
		return nil // a unix socket; then the configuration names the device
	}
	defer c.Close()
	return &net.TCPAddr{IP: c.LocalAddr().(*net.UDPAddr).IP}
}

// resumeRDMA opens the device again after a restart of the daemon, before a
// channel is dialled. Where that cannot be, pages go by TCP: the guest runs.
func (o *outgoing) resumeRDMA() {
	dev, _, err := o.host.rdmaDevice(o.rec.Options.Transport, localTo(o.rec.Peer))
	if dev != nil {
		err = o.exportBy(dev)
	}
	if err != nil {
		o.warn("after the restart of this daemon pages go by TCP", "err", err)
	}
}

// resumeRDMA is the same at the destination.
func (in *incoming) resumeRDMA() {
	dev, _, err := in.host.rdmaDevice(in.rec.Options.Transport, localTo(in.rec.Peer))
	switch {
	case err != nil:
		in.warn("after the restart of this daemon pages come by TCP", "err", err)
	case dev != nil:
		in.note("channel", "after the restart of this daemon pages come by RDMA through "+dev.String())
		in.useRDMA(dev)
	}
}

// closeRDMA closes the device, after the engine and the channels.
func (in *incoming) closeRDMA() {
	if dev := in.rdmaDev.Swap(nil); dev != nil {
		if err := dev.Close(); err != nil {
			in.warn("RDMA was not taken down in order", "err", err)
		}
	}
}

// precacheBy is how the answers of a precache channel come that has RDMA: as it was
// asked for or, if it was not, by what the codec says. A peer that knows no SEND has
// what is to be compressed by TCP.
func precacheBy(o *Options, features transport.Features) string {
	compressed := o.Codec == "s2" || o.Codec == "zstd"
	by := o.RDMAPrecache
	switch {
	case by == "" && compressed:
		by = RDMAPrecacheSend
	case by == "":
		by = RDMAPrecacheRead
	}
	if by == RDMAPrecacheSend && features&transport.FeatureSend == 0 {
		by = RDMAPrecacheRead
		if compressed {
			by = RDMAPrecacheTCP
		}
	}
	return by
}

// overRDMA puts RDMA on a page channel, if the session has it, and precache is not to
// go without. An error says that the channel is to be dialled again.
func (in *incoming) overRDMA(conn *tcp.Conn, f transport.Fetcher) (transport.Fetcher, error) {
	dev := in.rdmaDev.Load()
	by := RDMAPrecacheRead
	if conn.Kind() == transport.Precache {
		by = precacheBy(&in.rec.Options, conn.Features())
	}
	if dev == nil || conn.Features()&transport.FeatureRDMA == 0 || by == RDMAPrecacheTCP {
		return f, nil
	}
	kind, index := conn.Kind(), conn.Index()
	tune := in.host.tuning()
	wait, instead := in.rec.Options.RDMALost == RDMALostWait, "pages come by TCP"
	if wait {
		instead = "its pages wait for it"
	}
	o := rdma.FetchOptions{
		Spin: cmp.Or(tune.Spin, rdma.DefaultSpin), DeadAfter: tune.DeadAfter, MaxCount: conn.MaxCount(), Stats: &in.reads, Only: wait, Landing: in.landing.Load(),
		Down: func(err error) {
			why := err.Error()
			in.rdmaLost.Store(&why)
			in.warn(fmt.Sprintf("%v channel %d: no more RDMA, %s", kind, index, instead), "err", err)
		},
	}
	if in.rec.Options.RDMALand == RDMALandAlias {
		o.LentBytes = rdma.LentBytes
	}
	rf, err := over(by, dev, f, conn, in.rec.Regions, o)
	switch {
	case errors.Is(err, rdma.ErrDeviceClosed):
		return f, nil // the session has just ended
	case err != nil && wait:
		why := err.Error()
		in.rdmaLost.Store(&why)
		return nil, err
	case err != nil:
		in.warn(fmt.Sprintf("%v channel %d: %s", kind, index, instead), "err", err)
		return f, nil
	}
	return rf, nil
}

// over puts RDMA on a channel, one way or the other.
func over(by string, dev *rdma.Device, f transport.Fetcher, conn *tcp.Conn, regions []transport.Region, o rdma.FetchOptions) (transport.Fetcher, error) {
	if by == RDMAPrecacheSend {
		return rdma.NewBatchFetcher(dev, f, conn, regions, o)
	}
	return rdma.NewFetcher(dev, f, conn, regions, o)
}
