package relocate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/inject"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/uffd"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/rdma"
	"golang.org/x/sys/unix"
)

// guestMemory is the destination's hold on a VMM's memory: what catches its faults,
// the claims, and the engine.
type guestMemory struct {
	in      *incoming
	engine  *faultd.Engine
	source  memorySource
	regions []faultd.Region
	files   []*os.File       // the RAM files
	tables  [][]byte         // the mapped residency files
	begun   chan struct{}    // closed when the source's image is frozen
	faults  *faultLog        // nil: not kept
	share   *pagecache.Share // of the host's cap
	land    *rdma.Landing    // nil: READs land in staging buffers
}

// catchFaults has every touch of the RAM of a VMM that was just started fault into
// the engine: by the character device if the RAM is on it, else by a userfaultfd
// taken from the VMM. What the VMM has written there before is thrown away.
func catchFaults(in *incoming) (*guestMemory, error) {
	if in.rec.onDevice() {
		return holdMemory(in, true, (*guestMemory).catchByDevice)
	}
	taken, err := inject.Userfaultfd(in.rec.PID, inject.Options{KeepRemote: true})
	if err != nil {
		return nil, fmt.Errorf("catch the faults of QEMU: %w", err)
	}
	in.rec.RemoteFD = taken.Remote
	g, err := holdMemory(in, true, byUserfaultfd(taken.FD))
	if err != nil {
		return nil, err
	}
	if err := in.host.journal.write(in.rec); err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

// takeOverFaults does the same for a VMM that runs already, in the place of a
// daemon that died: the object, or the userfaultfd and its registrations, are
// still there.
func takeOverFaults(in *incoming) (*guestMemory, error) {
	if in.rec.onDevice() {
		return holdMemory(in, false, (*guestMemory).catchByDevice)
	}
	fd, err := inject.Retake(in.rec.PID, in.rec.RemoteFD)
	if err != nil {
		return nil, err
	}
	return holdMemory(in, false, byUserfaultfd(fd))
}

// byUserfaultfd returns what opens the memory with a userfaultfd, which is closed
// on an error.
func byUserfaultfd(fd *uffd.FD) func(*guestMemory, bool) (memorySource, error) {
	return func(g *guestMemory, fresh bool) (memorySource, error) {
		areas, err := g.open(fresh)
		var shared *faultd.Shared
		if err == nil {
			shared, err = faultd.NewShared(faultd.UFFDConfig{FD: fd, Areas: areas, Unmaps: true, Spin: g.in.host.cfg.Spin})
		}
		if err != nil {
			return nil, errors.Join(err, fd.Close())
		}
		return shared, nil
	}
}

// holdMemory starts the engine on the memory that open opens.
func holdMemory(in *incoming, fresh bool, open func(g *guestMemory, fresh bool) (memorySource, error)) (*guestMemory, error) {
	g := &guestMemory{in: in, begun: make(chan struct{}), share: in.host.in.Join()}
	var err error
	if g.source, err = open(g, fresh); err != nil {
		g.close()
		return nil, err
	}
	in.update(func(s *Status) { s.FaultSource = in.faultSource() })
	o := in.rec.Options
	var record faultd.Recorder
	if dir := in.host.cfg.FaultLogDir; dir != "" {
		if g.faults, err = newFaultLog(dir, in); err != nil {
			g.close()
			return nil, err
		}
		record = g.faults
	}
	g.engine, err = faultd.New(faultd.Config{
		Regions: g.regions, Memory: g.source.Memory(), Open: g.channel,
		DemandChannels: o.DemandChannels, PrecacheChannels: o.PrecacheChannels,
		Readers: in.host.cfg.FaultReaders, BlockingDemand: true, Priority: true, BulkNice: faultd.BulkNice, DemandPace: in.host.cfg.DemandPace,
		PrecacheOff: true, Held: true, Policies: in.policies(), Bandwidth: uint64(o.Bandwidth), Share: g.share, Record: record, Log: in.log,
	})
	if err == nil {
		err = g.engine.Start()
	}
	if err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

// prefer returns what takes a hot list, nil if it is of no use: the engine, and the
// fault log. On demand only the list is at most noted there.
func (g *guestMemory) prefer() func([]pagecache.Run) error {
	take := g.engine.Prefer
	if g.in.rec.Options.OnDemandOnly {
		take = func([]pagecache.Run) error { return nil }
	}
	if g.faults == nil {
		if g.in.rec.Options.OnDemandOnly {
			return nil
		}
		return take
	}
	return func(runs []pagecache.Run) error {
		g.faults.Listed(runs)
		return take(runs)
	}
}

// policies are the precache policies that the operator chose. A name that only a
// later version knows is left out.
func (in *incoming) policies() []pagecache.Policy {
	names := policyNames(in.rec.Options.Precache)
	names = slices.DeleteFunc(names, func(n string) bool { return !slices.Contains(pagecache.PolicyNames, n) })
	p, err := pagecache.Policies(names)
	if err != nil {
		in.warn("precache policies", "err", err)
	}
	return p
}

// policyNames splits Options.Precache.
func policyNames(list string) []string {
	if list == "" {
		return slices.Clone(DefaultPolicyNames)
	}
	return strings.Split(list, ",")
}

// open finds the RAM in the VMM, and opens its files and its claims.
func (g *guestMemory) open(fresh bool) ([]faultd.Area, error) {
	var areas []faultd.Area
	for i, m := range g.in.rec.Memory {
		region := g.in.rec.Regions[i]
		maps, err := qemu.MemoryMapping(g.in.rec.PID, m.Path)
		if err != nil {
			return nil, err
		}
		for j := 1; j < len(maps); j++ {
			if maps[j].Start != maps[j-1].End {
				return nil, fmt.Errorf("QEMU (pid %d) maps %s in pieces, at %#x and %#x", g.in.rec.PID, m.Path, maps[j-1].Start, maps[j].Start)
			}
		}
		file, err := os.OpenFile(m.Path, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("RAM file: %w", err)
		}
		g.files = append(g.files, file)
		if err := g.claim(i, fresh); err != nil {
			return nil, err
		}
		areas = append(areas, faultd.Area{Region: region, Addr: maps[0].Start, FD: int(file.Fd())})
	}
	return areas, nil
}

// claim adds region i to those of the engine.
func (g *guestMemory) claim(i int, fresh bool) error {
	region := g.in.rec.Regions[i]
	residency, err := g.residency(region, fresh)
	if err == nil {
		g.regions = append(g.regions, faultd.Region{Region: region, Residency: residency})
	}
	return err
}

// residency opens the claims of a region, in a file that outlives this daemon.
func (g *guestMemory) residency(r transport.Region, fresh bool) (*pagecache.Residency, error) {
	path := g.in.host.journal.residency(g.in.rec, r.ID)
	size := int64(pagecache.Size(r.Pages))
	flags := os.O_RDWR
	if fresh {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("residency file: %w", err)
	}
	defer f.Close()
	if fresh {
		if err := f.Truncate(size); err != nil {
			return nil, fmt.Errorf("residency file %s of %d bytes: %w", path, size, err)
		}
		// With memory behind all of it: a store to a page of a full file system is a SIGBUS.
		if err := sysmem.Allocate(int(f.Fd()), 0, size); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, fmt.Errorf("residency file %s of %d bytes: %w (is the state directory full?)", path, size, err)
		}
	}
	mem, err := sysmem.MapShared(int(f.Fd()), 0, size, true)
	if err != nil {
		return nil, fmt.Errorf("residency file %s: %w", path, err)
	}
	g.tables = append(g.tables, mem)
	token := tokenBytes(g.in.rec.Token)
	tag := binary.LittleEndian.Uint64(token[:])
	if fresh {
		return pagecache.Create(mem, r.Pages, tag)
	}
	res, err := pagecache.Attach(mem, r.Pages, tag)
	if err != nil {
		return nil, fmt.Errorf("residency file %s: %w", path, err)
	}
	res.Recover()
	return res, nil
}

// begin lets fetches go out: the source's image is frozen.
func (g *guestMemory) begin() { close(g.begun) }

// channel is the engine's way to a connection.
func (g *guestMemory) channel(ctx context.Context, kind transport.Kind, index int) (transport.Fetcher, error) {
	select {
	case <-g.begun:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return g.in.pool.open(ctx, kind, index)
}

// limitOf returns what sets the cap of precache to memory g, for transfer.limit.
func (in *incoming) limitOf(g *guestMemory) func(int64) error {
	return func(bytesPerSecond int64) error { // under in.mu
		g.engine.SetBandwidth(uint64(bytesPerSecond))
		if in.status.Phase == PhaseDraining {
			select {
			case in.capped <- struct{}{}:
			default: // the drain will look anyway
			}
		}
		return nil
	}
}

// newCap writes a cap down that was set in the drain, for a daemon that takes it up. On
// demand only there was nothing to cap, and the machine might never be whole: from now on
// it has precache.
func (in *incoming) newCap() {
	in.mu.Lock()
	began := in.rec.Options.OnDemandOnly
	in.rec.Options.Bandwidth = in.status.Options.Bandwidth
	in.rec.Options.OnDemandOnly, in.status.Options.OnDemandOnly = false, false
	in.mu.Unlock()
	if err := in.host.journal.write(in.rec); err != nil {
		in.warn("journal not written", "err", err)
	}
	if began {
		in.memory.engine.Hold(false)
		in.memory.engine.SetPrecache(true)
		in.note("memory", "on demand only until now; the rest of the memory follows in the background, as the operator asked")
	}
}

// failure adds what the engine knows to an error of QEMU's, which can only say
// that a load did not end.
func (g *guestMemory) failure() string {
	if err := g.engine.Err(); err != nil {
		return fmt.Sprintf(" (the fault engine has failed: %v)", err)
	}
	return ""
}

// abandon lets go of memory whose machine will never run: who waits for a page
// goes on, with garbage, so that the VMM can end in an orderly way.
func (g *guestMemory) abandon() {
	if g.source != nil {
		g.source.Release() // if it fails the VMM is ended by signal
	}
	g.close()
}

// close stops the engine and frees what it had. Threads that wait for a page
// wait on, unless the memory was drained or abandoned: QEMU's own descriptor
// keeps the userfaultfd alive, and the device its object.
func (g *guestMemory) close() {
	if g.engine != nil {
		g.engine.Detach()
	}
	g.share.Leave()
	err := errors.Join(g.closeLanding(), g.faults.close())
	if g.source != nil {
		err = errors.Join(err, g.source.Close())
	}
	for _, t := range g.tables {
		err = errors.Join(err, sysmem.Unmap(t))
	}
	for _, f := range g.files {
		err = errors.Join(err, f.Close())
	}
	g.tables, g.files = nil, nil
	if err != nil {
		g.in.warn("free the engine's memory", "err", err)
	}
}

// fill adds the engine's counters to a status.
func (g *guestMemory) fill(s *Status) {
	st := g.engine.Stats()
	s.PagesTotal, s.PagesRemaining = st.PagesTotal, st.PagesLeft
	s.PagesDemand, s.PagesPrecache, s.PagesZero = st.PagesDemand, st.PagesPrecache, st.PagesZero
	s.BytesGuest, s.BytesWire = st.BytesTotal-st.BytesLeft, st.DemandBytes+st.PrecacheBytes+g.in.indexBytes.Load()
	s.PagesSame, s.PagesMoved, s.BytesSaved = st.PagesSame, st.PagesMoved, st.BytesSame
	g.in.early.fill(s, st.PreTransfer)
	if g.in.warm != nil { // the caller holds the transfer's lock
		s.PagesCandidate = g.in.warm.Candidates()
	}
	s.ChannelsUp, s.ChannelsTotal, s.ChannelReopens = 0, len(st.Channels), 0
	for _, c := range st.Channels {
		if c.Up {
			s.ChannelsUp++
		}
		if c.Opens > 1 {
			s.ChannelReopens += c.Opens - 1
		}
	}
	s.DemandPaced = st.DemandPaced
	g.in.fillRDMA(s)
	s.Policies = nil
	if slices.Contains(policyNames(g.in.rec.Options.Precache), Rings) && !g.in.rec.Options.OnDemandOnly {
		s.Policies = append(s.Policies, PolicyCount{Name: Rings, Runs: st.Expected.Runs, Pages: st.Expected.Pages, Late: st.Expected.Late})
	}
	for _, p := range st.Planner.Policies {
		s.Policies = append(s.Policies, PolicyCount(p))
	}
	s.FaultLatency = Latency(st.Stages[faultd.StageTotal].Summary())
	s.Stages = make(map[string]Latency, len(st.Stages))
	for name, h := range st.Stages {
		s.Stages[string(name)] = Latency(h.Summary())
	}
}
