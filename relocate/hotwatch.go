package relocate

import (
	"cmp"
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/recency"
	"github.com/pagewarp/pagewarp/internal/sched"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// sampleEvery is how often the guest's touches are sampled before the stop; what
// was touched in the last of these intervals comes first.
const sampleEvery = 100 * time.Millisecond

// maxEpoch is the number of samples that are told apart, 25 s of them.
const maxEpoch = 255

var errHotLate = errors.New("the destination was ready before the watch was")

// hotWatch watches which pages the guest touches from the offer on, and tells the
// destination: what was touched until READY then, what was touched after that when
// the image is frozen. It never holds the switch-over up.
type hotWatch struct {
	o      *outgoing
	ctl    *control
	setup  context.Context // until READY
	late   context.CancelCauseFunc
	ready  chan struct{} // closed: the destination is ready
	frozen chan struct{} // closed: the guest has stopped
	gone   chan struct{} // closed: the guest has left
	wg     sync.WaitGroup

	// The rest belongs to the goroutine.
	watch *recency.Watch
	parts []hotPart // index-parallel to the watched areas
	epoch [][]uint8 // of each page, by region: the sample that saw it last; 0: none
	now   uint8     // samples taken
}

// hotPart says where in its region an area lies.
type hotPart struct {
	region int
	offset uint64 // bytes
}

// watchMemory starts a hotWatch, which ends with ctl or once the image is frozen.
func (o *outgoing) watchMemory(ctl *control) *hotWatch {
	h := &hotWatch{o: o, ctl: ctl, ready: make(chan struct{}), frozen: make(chan struct{}), gone: make(chan struct{})}
	h.setup, h.late = context.WithCancelCause(ctl.ctx)
	h.wg.Go(func() {
		defer h.late(nil)
		// The thread ends with the goroutine. It competes with the guest, and then
		// with QEMU that saves its state.
		runtime.LockOSThread()
		if err := sched.Lower(faultd.BulkNice); err != nil {
			o.log.Info("the watch keeps its priority", "err", err)
		}
		if err := h.run(); err != nil && ctl.ctx.Err() == nil {
			o.note("hot", "no hot list: "+err.Error())
		}
	})
	return h
}

// isReady says that the destination is ready, isFrozen that the guest has stopped.
// A nil hotWatch does nothing.
func (h *hotWatch) isReady() {
	if h != nil {
		close(h.ready)
		h.late(errHotLate) // no page-table entry is taken while the state is on its way
	}
}

func (h *hotWatch) isFrozen() {
	if h != nil {
		close(h.frozen)
	}
}

// isGone says that the guest is the destination's.
func (h *hotWatch) isGone() {
	if h != nil {
		close(h.gone)
	}
}

// wait waits for the end.
func (h *hotWatch) wait() {
	if h != nil {
		h.wg.Wait()
	}
}

func (h *hotWatch) run() error {
	areas, err := h.areas()
	if err != nil {
		return err
	}
	h.watch, err = recency.Start(h.setup, h.o.rec.PID, areas)
	if err != nil {
		return err
	}
	defer h.watch.Close()
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for waiting := true; waiting; {
		select {
		case <-tick.C:
		case <-h.ready:
			waiting = false
		case <-h.ctl.ctx.Done():
			return nil
		}
		if err := h.sample(); err != nil {
			return err
		}
	}
	if err := h.tell(1); err != nil {
		return err
	}
	before := h.now
	select {
	case <-h.frozen:
	case <-h.ctl.ctx.Done():
		return nil
	}
	if err := h.sample(); err != nil {
		return err
	}
	if err := h.tell(before + 1); err != nil {
		return err
	}
	// To end the watch is work for the kernel, which is to do another first.
	select {
	case <-h.gone:
	case <-h.ctl.ctx.Done():
	}
	return nil
}

// areas finds the RAM in the VMM.
func (h *hotWatch) areas() ([]recency.Area, error) {
	var areas []recency.Area
	for i, m := range h.o.rec.Memory {
		if m.Object != "" {
			return nil, errors.New("memory on the character device is not watched")
		}
		maps, err := qemu.MemoryMapping(h.o.rec.PID, m.Path)
		if err != nil {
			return nil, err
		}
		for _, mp := range maps {
			areas = append(areas, recency.Area{Addr: mp.Start, Len: mp.End - mp.Start})
			h.parts = append(h.parts, hotPart{region: i, offset: mp.Offset})
		}
		h.epoch = append(h.epoch, make([]uint8, h.o.rec.Regions[i].Pages))
	}
	return areas, nil
}

// sample begins a new epoch, unless there were too many.
func (h *hotWatch) sample() error {
	if h.now < maxEpoch {
		h.now++
	}
	return h.watch.Sample(func(area int, offset, length uint64) {
		p := h.parts[area]
		pages, size := h.epoch[p.region], uint64(h.o.rec.Regions[p.region].PageSize)
		from := (p.offset + offset) / size
		to := (p.offset + offset + length + size - 1) / size
		for i := from; i < min(to, uint64(len(pages))); i++ {
			pages[i] = h.now
		}
	})
}

// tell sends the pages that were touched in the epoch since or later, the last
// epoch first.
func (h *hotWatch) tell(since uint8) error {
	type run struct {
		pagecache.Run
		epoch uint8
	}
	var runs []run
	pages := 0
	for i, region := range h.epoch {
		for at := 0; at < len(region); {
			e, from := region[at], at
			for at++; at < len(region) && region[at] == e; at++ {
			}
			if e >= since {
				runs = append(runs, run{pagecache.Run{Region: uint32(i), First: uint64(from), Count: uint32(at - from)}, e})
				pages += at - from
			}
		}
	}
	slices.SortStableFunc(runs, func(a, b run) int { return cmp.Compare(b.epoch, a.epoch) })
	list := make([]pagecache.Run, len(runs))
	for i, r := range runs {
		list[i] = r.Run
	}
	h.o.log.Info("hot list", "method", h.watch.Method(), "samples", h.now-since+1, "runs", len(runs), "pages", pages)
	return h.ctl.send(msgHot, hotMsg{Method: string(h.watch.Method()), Runs: appendRuns(nil, list)})
}

// optional takes a message that may be ignored, in the control channel's reader.
func (in *incoming) optional(m tcp.Message) {
	if m.Kind != msgHot {
		return
	}
	var msg hotMsg
	err := decode(m, &msg)
	var runs []pagecache.Run
	if err == nil {
		runs, err = parseRuns(msg.Runs)
	}
	if err == nil && msg.Method == ringsMethod {
		in.mu.Lock()
		in.rings = runs
		in.mu.Unlock()
		return
	}
	in.mu.Lock()
	prefer := in.prefer
	in.mu.Unlock()
	if prefer == nil {
		return // on demand only, or too late
	}
	if err == nil {
		err = prefer(runs)
	}
	if err != nil {
		in.warn("the source's hot list is ignored", "err", err)
		return
	}
	var pages uint64
	for _, r := range runs {
		pages += uint64(r.Count)
	}
	in.update(func(s *Status) { s.HotPages += pages })
	in.log.Info("hot list", "runs", len(runs), "pages", pages)
}
