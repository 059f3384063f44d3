package pageserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/hist"
	"github.com/pagewarp/pagewarp/internal/sched"
	"github.com/pagewarp/pagewarp/transport"
)

// maxCopied bounds the memory into which pages are read, or copied, for one answer, where
// they are not sent from the image itself: several times what an answer can hold, since
// pages of one word cost it next to nothing, and not what a peer likes to ask for.
const maxCopied = 8 * transport.MaxBodyLimit

// nextBatch is the most fetches taken from a channel at a time.
const nextBatch = 64

// Stats counts the answers of one or more channels. The fields may be read at
// any time; they only grow.
type Stats struct {
	Fetches atomic.Uint64 // answered with pages
	Refused atomic.Uint64 // answered with an error
	Pages   atomic.Uint64 // in answers, the three below together
	Data    atomic.Uint64 // sent as bytes
	Fill    atomic.Uint64 // sent as a word that is not zero
	Same    atomic.Uint64 // confirmed: the destination has them
	Moved   atomic.Uint64 // the destination has them elsewhere
	Hashed  atomic.Uint64 // compared with what the destination has
	Repeat  atomic.Uint64 // sent as a repeat of another page of the answer
	Zero    atomic.Uint64 // sent as zero
	Ahead   atomic.Uint64 // zero pages announced after a range
	Bytes   atomic.Uint64 // of the data pages, before encoding
	// Service is the time from taking a fetch off the channel to its answer's
	// last byte in the socket buffer. Its Snapshot has the methods of faultd's Distribution.
	Service hist.Histogram
}

// Options of [Serve]. The zero value is good.
type Options struct {
	// Stats, if not nil, counts what this channel does. Several channels may
	// share one.
	Stats *Stats
	// Warm, if not nil, is what the destination may have already. It is only for
	// channels with transport.FeatureWarm in force.
	// Where faults wait, pages are compared as long as that pays, else always.
	Warm *Warm
	// Moved looks for pages among the candidates of other pages, too, where no faults
	// wait. It is only for channels with transport.FeatureMoved in force as well.
	Moved bool
	// Repeats sends a page that an answer holds twice once. It is only for channels
	// with transport.FeatureRepeat in force.
	Repeats bool
	// Demand says that faults wait for the answers: the thread is scheduled as
	// those of package faultd are. Nice is added to the nice value of one that
	// sends in bulk. Either locks the calling goroutine to its thread for good: it
	// should end after Serve.
	Demand bool
	Nice   int
	// Refused, if not nil, is told what the kernel does not permit of these.
	Refused func(error)
}

// schedule sets the calling thread's scheduling.
func (o *Options) schedule() (*sched.Fault, error) {
	switch {
	case o.Demand:
		runtime.LockOSThread()
		t := sched.Raise()
		return t, t.Refused()
	case o.Nice != 0:
		runtime.LockOSThread()
		return nil, sched.Lower(o.Nice)
	}
	return nil, nil
}

// Serve answers the fetches of one channel from im until the peer closes it
// (nil), ctx is done (its cause) or the channel fails (its error). A fetch that
// cannot be answered is refused, and the channel lives on. Serve closes the
// channel, and leaves the image open.
func Serve(ctx context.Context, ch transport.Responder, im *Image, o Options) error {
	thread, err := o.schedule()
	if err != nil && o.Refused != nil {
		o.Refused(err)
	}
	if o.Stats == nil {
		o.Stats = new(Stats)
	}
	stop := context.AfterFunc(ctx, func() { ch.Close() })
	defer stop()

	c := &channel{ch: ch, im: im, stats: o.Stats, service: o.Stats.Service.Recorder(), thread: thread}
	c.scratch.warm = o.Warm.comparer(&o)
	c.scratch.once = o.Repeats
	defer o.Stats.Service.Retire(c.service)
	defer c.scratch.close()
	err = c.loop()
	cerr := ch.Close()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	return cerr
}

// channel is the state of one Serve.
type channel struct {
	ch      transport.Responder
	im      *Image
	stats   *Stats
	service *hist.Recorder
	thread  *sched.Fault // nil unless faults pass through it
	scratch scratch
	ans     transport.Answer
	buf     [nextBatch]transport.Fetch
}

func (c *channel) loop() error {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for {
		n, err := c.ch.Next(c.buf[:])
		if err != nil {
			return err
		}
		start := time.Now()
		for _, f := range c.buf[:n] {
			if err := c.serve(f); err != nil {
				return err
			}
			now := time.Now()
			c.service.Record(now.Sub(start))
			start = now
		}
		c.thread.Tick()
	}
}

// refusal is a reason not to answer a fetch that leaves the channel in order.
type refusal struct {
	code transport.Code
	text string
}

// serve answers or refuses one fetch. An error is fatal to the channel.
func (c *channel) serve(f transport.Fetch) error {
	c.im.mu.RLock()
	defer c.im.mu.RUnlock()
	no, err := c.prepare(f)
	if err != nil {
		no = &refusal{transport.CodeIO, err.Error()}
	}
	if no != nil {
		c.stats.Refused.Add(1)
		return c.ch.Refuse(f.ID, no.code, no.text)
	}
	if err := c.send(); err != nil {
		return err
	}
	c.count()
	return nil
}

// prepare makes the answer. A fault in the mapping, which is a file truncated
// behind our back, becomes an error.
func (c *channel) prepare(f transport.Fetch) (no *refusal, err error) {
	defer onFault(&err)
	if c.im.released {
		return &refusal{transport.CodeDone, ErrReleased.Error()}, nil
	}
	state := ImageState(c.im.state.Load())
	if state == Shut {
		return &refusal{transport.CodeNotFrozen, "the image is not frozen"}, nil
	}
	r := c.im.byID[f.Region]
	if r == nil {
		return &refusal{transport.CodeRange, fmt.Sprintf("no region %d", f.Region)}, nil
	}
	if f.Count == 0 || f.First >= r.Pages || uint64(f.Count) > r.Pages-f.First {
		return &refusal{transport.CodeRange, fmt.Sprintf("pages %d+%d are outside of region %d (%q) with %d pages",
			f.First, f.Count, r.ID, r.Name, r.Pages)}, nil
	}
	if bytes := uint64(f.Count) << r.shift; bytes > maxCopied && (state == Live || r.how == byRead) {
		return &refusal{transport.CodeRange, fmt.Sprintf("%d pages of region %d (%q) are %d MiB, and at most %d are read at a time: fetch fewer pages",
			f.Count, r.ID, r.Name, bytes>>20, maxCopied>>20)}, nil
	}
	c.scratch.live = state == Live
	return nil, r.answer(f, &c.scratch, &c.ans)
}

// send hands the answer to the channel. If the file shrinks between the scan
// and here, part of a frame may be out: that is the channel's end.
func (c *channel) send() (err error) {
	defer onFault(&err)
	return c.ch.Answer(&c.ans)
}

// onFault turns the run-time error of a memory fault at a mapped file into err;
// any other panic goes on.
func onFault(err *error) {
	p := recover()
	if p == nil {
		return
	}
	fault, ok := p.(interface {
		runtime.Error
		Addr() uintptr
	})
	if !ok {
		panic(p)
	}
	*err = fmt.Errorf("read image at address %#x: %w (the file was truncated, or its memory is damaged)", fault.Addr(), fault)
}

func (c *channel) count() {
	a, s := &c.ans, c.stats
	data := a.Count
	for _, e := range a.Extents {
		if e.Kind == transport.Data {
			continue
		}
		data -= e.Count
		switch {
		case e.Kind == transport.Same:
			s.Same.Add(uint64(e.Count))
		case e.Kind == transport.Moved:
			s.Moved.Add(uint64(e.Count))
		case e.Kind == transport.Repeat:
			s.Repeat.Add(uint64(e.Count))
		case e.Word == 0:
			s.Zero.Add(uint64(e.Count))
		default:
			s.Fill.Add(uint64(e.Count))
		}
	}
	s.Fetches.Add(1)
	s.Pages.Add(uint64(a.Count))
	s.Data.Add(uint64(data))
	s.Ahead.Add(uint64(a.Ahead))
	s.Bytes.Add(uint64(data) * uint64(len(a.Memory)) / uint64(a.Count))
}
