package faultd

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/uffd"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

const testPage = 4096

// scriptedMemory is memory whose events and refusals a test decides on.
type scriptedMemory struct {
	mem     []byte
	events  chan []Event
	stopped chan struct{}
	stop    sync.Once

	install   func(r transport.Range) error // nil: it works
	discarded sync.Map                      // page → true
}

func newScriptedMemory(pages uint64) *scriptedMemory {
	return &scriptedMemory{mem: make([]byte, pages*testPage), events: make(chan []Event), stopped: make(chan struct{})}
}

func (m *scriptedMemory) memory() Memory { return Memory{Faults: m, Install: m, Place: m} }

func (m *scriptedMemory) NewReader() (FaultReader, error) { return m, nil }
func (m *scriptedMemory) Release() error                  { return nil }
func (m *scriptedMemory) Stop()                           { m.stop.Do(func() { close(m.stopped) }) }
func (m *scriptedMemory) Close() error                    { return nil }

func (m *scriptedMemory) Read(buf []Event) (int, error) {
	select {
	case evs := <-m.events:
		return copy(buf, evs), nil
	case <-m.stopped:
		return 0, ErrStopped
	}
}

func (m *scriptedMemory) Install(r transport.Range, _ [][]byte) error {
	if m.install != nil {
		return m.install(r)
	}
	return nil
}
func (m *scriptedMemory) Zero(transport.Range) error { return nil }
func (m *scriptedMemory) Wake(transport.Range) error { return nil }

func (m *scriptedMemory) Place(r transport.Range, dst [][]byte) {
	for i := range dst {
		at := (r.First + uint64(i)) * testPage
		dst[i] = m.mem[at : at+testPage : at+testPage]
	}
}

func (m *scriptedMemory) Discard(r transport.Range) error {
	for i := range uint64(r.Count) {
		m.discarded.Store(r.First+i, true)
	}
	return nil
}

func (m *scriptedMemory) NextData(uint32, uint64) (first, count uint64, ok bool, err error) {
	return 0, 0, false, nil
}

// scripted is a started engine of one region on such memory, without channels.
func scripted(t *testing.T, m *scriptedMemory) (*Engine, *pagecache.Residency) {
	t.Helper()
	pages := uint64(len(m.mem) / testPage)
	res, err := pagecache.New(pages)
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{Memory: m.memory(), Log: slog.New(slog.DiscardHandler),
		Regions: []Region{{Region: transport.Region{ID: 7, Pages: pages, PageSize: testPage}, Residency: res}},
		Open: func(ctx context.Context, _ transport.Kind, _ int) (transport.Fetcher, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close(); res.Close() })
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	return e, res
}

func pagesOf(first uint64, count uint32) transport.Range {
	return transport.Range{Region: 7, First: first, Count: count}
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// The last page waits for a changing layout, whose event the fault reader has not come
// to yet: before it there is a fault to be shown. The end of the drain waits for the
// page; the reader must not wait for the end of the drain.
func TestEndOfDrainDuringLayoutChange(t *testing.T) {
	m := newScriptedMemory(4)
	var busy atomic.Bool
	busy.Store(true)
	m.install = func(transport.Range) error {
		if busy.Load() {
			return ErrBusy
		}
		return nil
	}
	e, res := scripted(t, m)

	last := make(chan error, 1)
	go func() {
		s, dst := newSink(e, transport.Precache, nil), make([][]byte, 1)
		s.Reserve(pagesOf(0, 1), dst)
		last <- s.Commit(pagesOf(0, 1), dst)
	}()
	eventually(t, "page 0 is resident, and about to be shown", func() bool { return res.State(0) == pagecache.Resident })
	if err := newSink(e, transport.Demand, nil).Zero(pagesOf(1, 3)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-e.full:
	default:
		t.Fatal("no page is left, and the engine has not noticed")
	}
	// The release may come between any two of the following.
	send := func(ev Event, before func()) {
		select {
		case m.events <- []Event{ev}:
			before()
		case <-m.stopped:
		case <-time.After(10 * time.Second):
			t.Errorf("the reader does not come to read the %v", ev.Kind)
		}
	}
	eventually(t, "the end of the drain wants to release the memory", func() bool {
		if e.showing.TryRLock() {
			defer e.showing.RUnlock()
			return e.released
		}
		return true
	})
	send(Event{Kind: Fault, Region: 7, Page: 1, Count: 1}, func() {})
	send(Event{Kind: Remove, Region: 7, Page: 2, Count: 1}, func() { busy.Store(false) })
	select {
	case <-e.Drained():
	case <-time.After(10 * time.Second):
		busy.Store(false) // lets the test end
		t.Fatal("the drain does not end: the reader of the layout's change waits for who waits for the change")
	}
	if err := <-last; err != nil {
		t.Errorf("commit: %v", err)
	}
}

// A page that was committed is not the channel's to abort any more, though showing it
// failed: the machine may have it, and may have written it.
func TestAbortLeavesResidentPages(t *testing.T) {
	m := newScriptedMemory(4)
	e, res := scripted(t, m)
	w, err := NewWarm([32]byte{1}, []transport.Region{e.cfg.Regions[0].Region})
	if err != nil {
		t.Fatal(err)
	}
	for page := range uint64(3) {
		m.mem[page*testPage] = byte(page + 1)
		w.Index(7).Set(page, w.Hasher().Sum(m.mem[page*testPage:][:testPage]))
	}
	if err := e.SetWarm(w); err != nil {
		t.Fatal(err)
	}
	gone := errors.New("cannot map")
	m.install = func(transport.Range) error { return gone }
	s, dst := newSink(e, transport.Precache, nil), make([][]byte, 4)
	s.Reserve(pagesOf(0, 4), dst)
	if err := s.Same(pagesOf(0, 3), dst[:3]); !errors.Is(err, gone) {
		t.Fatalf("same: %v, want %v", err, gone)
	}
	s.Abort(pagesOf(0, 4), dst)
	for page := range uint64(4) {
		_, emptied := m.discarded.Load(page)
		if st := res.State(page); st == pagecache.Resident && emptied || st == pagecache.Installing {
			t.Errorf("page %d is %v, its memory emptied: %v", page, st, emptied)
		}
	}
	if res.State(0) != pagecache.Resident {
		t.Errorf("page 0 is %v: the test is of no use", res.State(0))
	}
	if _, emptied := m.discarded.Load(uint64(3)); !emptied {
		t.Error("page 3 was never committed, and keeps what was written of it")
	}
}

// A removal that meets a claim is repeated after the claim, also where the claim ends
// just before that is noted.
func TestRemovalMeetsEndOfClaim(t *testing.T) {
	m := newScriptedMemory(4)
	e, res := scripted(t, m)
	s, dst := newSink(e, transport.Demand, nil), make([][]byte, 1)
	s.Reserve(pagesOf(0, 1), dst)

	e.removesMu.Lock()
	removed := make(chan struct{})
	go func() { defer close(removed); e.remove(pagesOf(0, 2)) }()
	eventually(t, "the removal has met the claim", func() bool { return res.State(1) == pagecache.Zero })
	commit := make(chan error, 1)
	go func() { commit <- s.Commit(pagesOf(0, 1), dst) }()
	eventually(t, "the claim has ended", func() bool { return res.State(0) == pagecache.Resident })
	e.removesMu.Unlock()
	<-removed
	if err := <-commit; err != nil {
		t.Fatal(err)
	}
	if st := res.State(0); st != pagecache.Zero {
		t.Errorf("page 0 is %v: it was given back, and a touch would be told that it is there", st)
	}
}

// Several runs of one answer may need more than the first staging buffer: pages that
// come as fill words cost no bytes of the answer.
func TestStagingOfSeveralRuns(t *testing.T) {
	m := newScriptedMemory(8192)
	e, _ := scripted(t, m)
	s := newSink(e, transport.Precache, nil)
	s.stages = true
	defer s.close()
	var first, second [3000][]byte
	s.Reserve(pagesOf(0, 3000), first[:])
	s.Reserve(pagesOf(4000, 3000), second[:])
	for i := range first {
		for j, p := range [][]byte{first[i], second[i]} {
			if len(p) != testPage {
				t.Fatalf("page %d of run %d: %d bytes; the engine: %v", i, j, len(p), e.Err())
			}
			p[0], p[testPage-1] = byte(j+1), byte(j+1)
		}
	}
	for i := range first {
		if first[i][0] != 1 || second[i][0] != 2 {
			t.Fatalf("page %d: the runs share memory", i)
		}
	}
	s.giveUp(e.regions[7], pagesOf(0, 3000), first[:], 0)
	s.giveUp(e.regions[7], pagesOf(4000, 3000), second[:], 0)
	s.reset()
}

// Of a huge page of which only a part was given back the rest is still the machine's.
func TestRemovalOfPartOfAPage(t *testing.T) {
	const huge = 2 << 20
	as, err := newAreas([]Area{{Region: transport.Region{ID: 7, Pages: 4, PageSize: huge}, Addr: huge}})
	if err != nil {
		t.Fatal(err)
	}
	u := &uffdReader{as: &as}
	for _, c := range []struct {
		addr, length, page, count uint64
		ok                        bool
	}{
		{huge, huge, 0, 1, true},
		{huge, 4 * huge, 0, 4, true},
		{0, 9 * huge, 0, 4, true},
		{huge + 4096, 4096, 0, 0, false},
		{huge, 4096, 0, 0, false},
		{huge + 4096, huge, 0, 0, false},
		{huge + 4096, 2 * huge, 1, 1, true},
		{2 * huge, 2*huge - 4096, 1, 1, true},
		{3*huge - 4096, huge + 8192, 2, 1, true},
	} {
		evs, err := u.translate(&uffd.Event{Kind: uffd.KindRemove, Addr: c.addr, Len: c.length}, nil)
		var ev Event
		if len(evs) > 0 {
			ev = evs[0]
		}
		if err != nil || len(evs) > 1 || (len(evs) == 1) != c.ok || c.ok && (ev.Page != c.page || ev.Count != c.count || ev.Region != 7) {
			t.Errorf("%#x+%#x: %+v, %v; want pages %d+%d, %v", c.addr, c.length, evs, err, c.page, c.count, c.ok)
		}
	}
}

// Regions side by side may be one mapping to the kernel, of which one event tells.
func TestRemovalOverTwoRegions(t *testing.T) {
	as, err := newAreas([]Area{
		{Region: transport.Region{ID: 7, Pages: 4, PageSize: testPage}, Addr: 4 * testPage},
		{Region: transport.Region{ID: 8, Pages: 4, PageSize: testPage}, Addr: 8 * testPage},
	})
	if err != nil {
		t.Fatal(err)
	}
	u := &uffdReader{as: &as}
	evs, err := u.translate(&uffd.Event{Kind: uffd.KindRemove, Addr: 6 * testPage, Len: 3 * testPage}, nil)
	want := []Event{{Kind: Remove, Region: 7, Page: 2, Count: 2}, {Kind: Remove, Region: 8, Page: 0, Count: 1}}
	if err != nil || !slices.Equal(evs, want) {
		t.Errorf("%+v, %v; want %+v", evs, err, want)
	}
}

// The last page of a drain was given back while it was on its way, and its answer is
// damaged: nothing is left to fetch, and the drain ends.
func TestDrainEndsWithAnAbort(t *testing.T) {
	m := newScriptedMemory(4)
	e, _ := scripted(t, m)
	s, dst := newSink(e, transport.Precache, nil), make([][]byte, 1)
	s.Reserve(pagesOf(0, 1), dst)
	e.layout(&Event{Kind: Remove, Region: 7, Page: 0, Count: 4})
	s.Abort(pagesOf(0, 1), dst)
	select {
	case <-e.Drained():
	case <-time.After(10 * time.Second):
		t.Fatalf("no page is left to fetch, and the drain does not end: %+v", e.Stats())
	}
}

// A fault counts once, however often showing its page is tried, and a page that nobody
// touched does not count.
func TestFaultsCountOnce(t *testing.T) {
	m := newScriptedMemory(4)
	var left atomic.Int32
	m.install = func(transport.Range) error {
		if left.Add(-1) >= 0 {
			return ErrBusy
		}
		return nil
	}
	e, _ := scripted(t, m)
	s, dst := newSink(e, transport.Precache, nil), make([][]byte, 1)
	left.Store(20)
	s.Reserve(pagesOf(0, 1), dst)
	if err := s.Commit(pagesOf(0, 1), dst); err != nil {
		t.Fatal(err)
	}
	if n := e.Stats().FaultsResident; n != 0 {
		t.Errorf("%d faults on resident pages, of none", n)
	}
	left.Store(20)
	m.events <- []Event{{Kind: Fault, Region: 7, Page: 0, Count: 1}}
	eventually(t, "the page is shown", func() bool { return left.Load() < 0 })
	if st := e.Stats(); st.FaultsResident != 1 || st.Faults != 1 {
		t.Errorf("%d faults on resident pages and %d in all, of one", st.FaultsResident, st.Faults)
	}
}

// Who waits for the drain hears of the engine's end, whoever asked for it.
func TestWaitEndsWithTheEngine(t *testing.T) {
	e, _ := scripted(t, newScriptedMemory(4))
	waits := make(chan error, 1)
	go func() { waits <- e.Wait(context.Background()) }()
	e.Detach()
	select {
	case err := <-waits:
		if !errors.Is(err, ErrDetached) {
			t.Errorf("the wait ends with %v, want %v", err, ErrDetached)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("an engine that was detached is waited for for ever")
	}
	if err := e.Wait(context.Background()); !errors.Is(err, ErrDetached) {
		t.Errorf("a wait after the end: %v", err)
	}
}
