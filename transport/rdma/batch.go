package rdma

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
)

// Receive buffers of a BatchFetcher. Precache asks for 16 to 32 pages at a time, which
// fit into one raw; 32 of them bridge 16 ms of 1 Gbit/s. What is longer, or does not
// find a buffer, comes over the connection.
const (
	batchSlots  = 32
	batchBytes  = 256 << 10
	batchMemory = 8 << 20 // of all buffers
	batchTake   = 8       // messages taken in before the first of them is reported
)

// BatchFetcher is a page channel whose fetches go over the connection beneath and whose
// answers come by RDMA SEND, as the PAGES frames that they would be there: encoded,
// described by extents. What the source answers over the connection, and all before
// RDMA is set up and after it has ended, comes that way. It implements
// [transport.Fetcher]; the sink must be such as [Fetcher] needs.
type BatchFetcher struct {
	sleeper

	base transport.MessageFetcher
	ch   Channel
	dev  *Device
	opt  FetchOptions
	stop func() // of the device's watch

	mem      []byte // the receive buffers
	slotSize int
	slots    []slot
	mr       *region

	stats  *Stats
	sink   *lateSink
	pump   sync.WaitGroup
	closed atomic.Bool

	recvMu sync.Mutex // held through Receive; what follows belongs to its holder
	box    box
	dones  [batchTake]done
	back   []slot
	seen   time.Time // when an answer last came, or none was due

	sendMu sync.Mutex // orders fetches that were held; before mu

	mu      sync.Mutex
	q       *queue                     // guarded by mu; nil before ACCEPT and after the end of RDMA
	pending *queue                     // guarded by mu; waits for ACCEPT, or could not be connected
	joining *queue                     // guarded by mu; is being connected, and nobody else's than join's then
	met     bool                       // guarded by mu; there has been an ACCEPT
	over    bool                       // guarded by mu; RDMA has ended, as of a Fetcher
	mine    endpoint                   // of pending
	held    fifo[transport.Fetch]      // guarded by mu; with Only, until a message can answer them
	answers fifo[transport.Completion] // guarded by mu
	err     error                      // guarded by mu; the end of the channel
}

// NewBatchFetcher has the answers of a page channel come by SEND through dev, as
// [NewFetcher] does by READ. The channel has [transport.FeatureSend] in force, and base
// is a [transport.MessageFetcher]. Of the options StageBytes bounds the receive buffers
// (default 8 MiB), and with Only fetches wait for RDMA, and for a buffer.
func NewBatchFetcher(dev *Device, base transport.Fetcher, ch Channel, regions []transport.Region, o FetchOptions) (*BatchFetcher, error) {
	f, err := newBatchFetcher(dev, base, ch, regions, o)
	if err != nil {
		return nil, fmt.Errorf("set up RDMA by %s: %w", dev, err)
	}
	return f, nil
}

func newBatchFetcher(dev *Device, base transport.Fetcher, ch Channel, regions []transport.Region, o FetchOptions) (*BatchFetcher, error) {
	if o.DeadAfter <= 0 {
		o.DeadAfter = 5 * time.Second
	}
	if o.StageBytes <= 0 {
		o.StageBytes = batchMemory
	}
	mf, ok := base.(transport.MessageFetcher)
	if !ok || ch.Features()&transport.FeatureSend == 0 {
		return nil, fmt.Errorf("the channel has the features %v, and cannot have answers by message", ch.Features())
	}
	f := &BatchFetcher{base: mf, ch: ch, dev: dev, opt: o, sleeper: sleeper{wakeFD: -1}, sink: newLateSink(), stats: o.Stats, seen: time.Now()}
	if f.stats == nil {
		f.stats = new(Stats)
	}
	f.slotSize = batchBytes
	f.box = box{s: f.sink, pageSize: make(map[uint32]int)}
	for _, r := range regions {
		f.box.pageSize[r.ID] = int(r.PageSize)
		if r.PageSize <= maxStagedPage { // raw pages, with room for the head
			f.slotSize = max(f.slotSize, int(r.PageSize)+4096)
		}
	}
	if err := dev.hold(); err != nil {
		return nil, err
	}
	if int(dev.caps.maxMessage) < f.slotSize {
		dev.drop()
		return nil, fmt.Errorf("its messages have at most %d bytes, %d are needed", dev.caps.maxMessage, f.slotSize)
	}
	n := max(2, min(batchSlots, o.StageBytes/f.slotSize, dev.caps.depth-2))
	if err := f.open(n); err != nil {
		f.releaseAll()
		return nil, err
	}
	f.pump.Go(f.receiveBelow)
	return f, nil
}

// open makes n receive buffers and a queue pair, and asks the source for its own.
func (f *BatchFetcher) open(n int) (err error) {
	if f.mem, err = sysmem.MapAnonymous(int64(n * f.slotSize)); err != nil {
		return err
	}
	if err = f.sleeper.open(); err != nil {
		return err
	}
	if f.mr, err = f.dev.register(f.mem, landing); err != nil {
		return err
	}
	for i := range n {
		f.slots = append(f.slots, slot{id: uint64(i), local: addressOf(f.mem) + uint64(i*f.slotSize), length: uint32(f.slotSize), lkey: f.mr.lkey})
	}
	if f.pending, err = f.dev.dev.messages(1, n); err != nil {
		return err
	}
	if f.stop, err = f.dev.onFailure(f.breakDown); err != nil {
		return err
	}
	f.ch.SetSide(f.side)
	f.mine = f.dev.endpoint(f.pending, 1)
	f.mine.slots, f.mine.slotBytes = uint32(n), uint32(f.slotSize)
	return f.ch.SendSide(transport.Header{Aux: kindConnect}, f.mine.append(nil))
}

// Up says whether answers come by SEND at the moment.
func (f *BatchFetcher) Up() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.q != nil
}

// Stats is what counts this channel: that of its options, or one of its own.
func (f *BatchFetcher) Stats() *Stats { return f.stats }

// InPlace implements [transport.InPlace], see [Fetcher.InPlace].
func (*BatchFetcher) InPlace() bool { return true }

// Done is closed when the channel beneath has ended.
func (f *BatchFetcher) Done() <-chan struct{} { return f.ch.Done() }

// Fetch implements [transport.Fetcher].
func (f *BatchFetcher) Fetch(fs []transport.Fetch) error {
	if f.closed.Load() {
		return ErrClosed
	}
	if !f.opt.Only {
		return f.base.Fetch(fs)
	}
	f.mu.Lock()
	if f.err != nil {
		defer f.mu.Unlock()
		return f.err
	}
	if f.held.len()+len(fs) > maxOutstanding {
		defer f.mu.Unlock()
		return fmt.Errorf("%d fetches are outstanding, the limit", maxOutstanding)
	}
	for i := range fs {
		f.held.push(fs[i])
	}
	f.mu.Unlock()
	return f.flush()
}

// flush sends fetches that were held, as many as a message can answer.
func (f *BatchFetcher) flush() error {
	f.sendMu.Lock()
	defer f.sendMu.Unlock()
	for {
		f.mu.Lock()
		n := min(f.held.len(), 64)
		if f.q == nil {
			n = 0
		}
		n = min(n, f.base.Invited())
		fs := make([]transport.Fetch, 0, n)
		for range n {
			fs = append(fs, f.held.pop())
		}
		f.mu.Unlock()
		if n == 0 {
			return nil
		}
		if err := f.base.Fetch(fs); err != nil {
			return err
		}
	}
}

// Outstanding implements [transport.Fetcher].
func (f *BatchFetcher) Outstanding(buf []transport.Fetch) []transport.Fetch {
	f.sendMu.Lock()
	defer f.sendMu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.held.n {
		buf = append(buf, f.held.buf[(f.held.head+i)%len(f.held.buf)])
	}
	return f.base.Outstanding(buf)
}

// Close implements [transport.Fetcher]. When it returns, nothing is received into this
// side's memory any more.
func (f *BatchFetcher) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	f.wake()
	f.sink.bind(nil)
	err := f.base.Close()
	f.recvMu.Lock()
	defer f.recvMu.Unlock()
	f.pump.Wait()
	f.releaseAll()
	return err
}

// releaseAll frees what the device and the system gave.
func (f *BatchFetcher) releaseAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stop != nil {
		f.stop()
	}
	if f.q != nil {
		f.stats.Up.Add(-1)
	}
	for _, q := range []*queue{f.q, f.pending} {
		if q != nil {
			q.close()
		}
	}
	f.q, f.pending = nil, nil
	if f.mr != nil {
		f.mr.close()
		f.mr = nil
	}
	f.box.free()
	sysmem.Unmap(f.mem)
	f.mem = nil
	f.shut()
	f.dev.drop()
}
