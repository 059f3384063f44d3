package micro

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/ringq"
)

// QueueCapacity is that of faultd's queue by default.
const QueueCapacity = 1024

// popBatch is how many items the consumer takes at once.
const popBatch = 64

// Pushers and Batches are the combinations that [Queue] measures.
var (
	Pushers = []int{1, 2, 4, 8, 16, 32, 64}
	Batches = []int{1, 64}
)

// QueueOptions configure [Queue].
type QueueOptions struct {
	Common
	Items int // through the queue for each figure and pass; 0 means 400 000
}

// QueueRow is one number of pushing goroutines and one batch.
type QueueRow struct {
	Pushers     int           `json:"pushers"`
	Batch       int           `json:"batch"` // items of a Push; a channel takes them one by one
	Queue       report.Spread `json:"queue_ns"`
	Channel     report.Spread `json:"channel_ns"`
	ItemsPerSec report.Spread `json:"queue_items_per_s"`
	Speedup     report.Spread `json:"speedup"` // channel's time over the queue's, pass by pass
}

// QueueResult is what [Queue] found.
type QueueResult struct {
	Capacity int           `json:"capacity"`
	Items    int           `json:"items"`
	Atomic   report.Spread `json:"atomic_add_ns"` // one uncontended atomic add
	Rows     []QueueRow    `json:"rows"`
}

// Queue measures nanoseconds an item from pushing goroutines to one consumer,
// with internal/ringq and with a buffered channel in turn. Whoever finds the queue
// full or empty yields the CPU. An item lost or seen twice is an error.
func Queue(ctx context.Context, o QueueOptions) (QueueResult, error) {
	o.defaults(10 * time.Millisecond)
	if o.Items == 0 {
		o.Items = 400_000
	}
	r := QueueResult{Capacity: QueueCapacity}
	// A multiple of every product, so that all rows move the same number.
	const whole = 64 * 64
	r.Items = (o.Items + whole - 1) / whole * whole
	type cell struct{ queue, channel, rate, speedup figure }
	cells := make([]cell, len(Pushers)*len(Batches))
	var add figure
	err := o.passes(ctx, func() error {
		add.add(atomicAdd(o.Slice))
		for i := range cells {
			pushers, batch := Pushers[i/len(Batches)], Batches[i%len(Batches)]
			q, err := throughQueue(pushers, batch, r.Items)
			if err != nil {
				return err
			}
			c, err := throughChannel(pushers, r.Items)
			if err != nil {
				return err
			}
			cells[i].queue.add(q)
			cells[i].channel.add(c)
			cells[i].rate.add(1e9 / q)
			cells[i].speedup.add(c / q)
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		return nil
	})
	if err != nil {
		return QueueResult{}, fmt.Errorf("measure the queue: %w", err)
	}
	r.Atomic = add.spread()
	for i, c := range cells {
		r.Rows = append(r.Rows, QueueRow{Pushers: Pushers[i/len(Batches)], Batch: Batches[i%len(Batches)],
			Queue: c.queue.spread(), Channel: c.channel.spread(), ItemsPerSec: c.rate.spread(), Speedup: c.speedup.spread()})
	}
	return r, nil
}

func atomicAdd(least time.Duration) float64 {
	const n = 10_000
	var v atomic.Uint64
	ns, _ := perCall(least, func() error { // cannot fail
		for range n {
			v.Add(1)
		}
		return nil
	})
	return ns / n
}

func throughQueue(pushers, batch, items int) (float64, error) {
	q := ringq.New[uint32](QueueCapacity)
	buf := make([]uint32, popBatch)
	return through("queue", pushers, items,
		func(first, n int) {
			vs := make([]uint32, batch)
			for at := first; at < first+n; at += batch {
				for i := range vs {
					vs[i] = uint32(at + i)
				}
				for left := vs; len(left) > 0; {
					k := q.Push(left)
					if left = left[k:]; k == 0 {
						runtime.Gosched()
					}
				}
			}
		},
		func() (sum uint64) {
			for left := items; left > 0; {
				n := q.Pop(buf)
				if n == 0 {
					runtime.Gosched()
				}
				for _, v := range buf[:n] {
					sum += uint64(v)
				}
				left -= n
			}
			return sum
		})
}

func throughChannel(pushers, items int) (float64, error) {
	c := make(chan uint32, QueueCapacity)
	return through("channel", pushers, items,
		func(first, n int) {
			for at := first; at < first+n; at++ {
				c <- uint32(at)
			}
		},
		func() (sum uint64) {
			for range items {
				sum += uint64(<-c)
			}
			return sum
		})
}

// through starts the pushers, each with its share of the items, lets them go at
// once, and returns nanoseconds an item until drain has taken the last.
func through(name string, pushers, items int, push func(first, n int), drain func() uint64) (float64, error) {
	share := items / pushers
	var ready, done sync.WaitGroup
	begin := make(chan struct{})
	for p := range pushers {
		ready.Add(1)
		done.Go(func() {
			ready.Done()
			<-begin
			push(p*share, share)
		})
	}
	ready.Wait()
	start := time.Now()
	close(begin)
	sum := drain()
	took := time.Since(start)
	done.Wait()
	if want := uint64(items) * uint64(items-1) / 2; sum != want {
		return 0, fmt.Errorf("%s with %d pushers: the items add up to %d, want %d: items were lost or came twice", name, pushers, sum, want)
	}
	return float64(took.Nanoseconds()) / float64(items), nil
}

// Text writes the table.
func (r QueueResult) Text(w io.Writer) error {
	rows := [][]string{{"uncontended atomic add", "", r.Atomic.Text(), "", "", ""}}
	for _, q := range r.Rows {
		rows = append(rows, []string{fmt.Sprintf("%d pushing", q.Pushers), fmt.Sprint(q.Batch), q.Queue.Text(), q.Channel.Text(),
			report.Number(q.ItemsPerSec.Median / 1e6), q.Speedup.Text()})
	}
	return report.Table(w, []string{fmt.Sprintf("queue of %d", r.Capacity), "batch", "ns an item", "channel ns", "M items/s", "channel ÷ queue"}, rows)
}
