package tcp

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// zeroGap is the shortest run of zero pages, in pages, that is worth a call of
// its own: a shorter one between other pages is written as zero bytes, so that
// the sink can commit one run.
const zeroGap = 16

// run is a part of an answer's range, in page indices within the range: either
// pages to reserve and write, or zero pages to report.
type run struct {
	at, n int
	zero  bool
}

// Receive waits for one answer, see [transport.Fetcher].
func (f *Fetcher) Receive(sink transport.Sink, c *transport.Completion) error {
	f.rmu.Lock()
	err := f.receive(sink, c)
	f.rmu.Unlock()
	if err != nil {
		err = f.c.fail(err)
		f.release()
	} else if f.c.closed.Load() {
		f.release()
	}
	return err
}

func (f *Fetcher) receive(sink transport.Sink, c *transport.Completion) error {
	for {
		if f.c.closed.Load() {
			return f.c.Err()
		}
		h, crc, err := f.c.w.frame(f.c.MaxBody())
		if err != nil {
			return err
		}
		switch h.Type {
		case transport.TypePages:
			if told, err := f.pages(&f.conn, &h, crc, sink, c); told || err != nil {
				return err
			}
			continue
		case transport.TypeRefuse:
			if told, err := f.refused(&h, crc, c); told || err != nil {
				return err
			}
			continue
		}
		if ok, err := f.c.common(&h, crc); err != nil {
			return err
		} else if !ok {
			return f.c.wrong(&h)
		}
	}
}

// refused takes a REFUSE; told says that c is to be reported.
func (f *Fetcher) refused(h *transport.Header, crc uint32, c *transport.Completion) (told bool, err error) {
	text, err := f.c.w.small(h, crc)
	if err != nil {
		return false, err
	}
	p, ok := f.lookup(h.ID)
	if !ok {
		return false, fmt.Errorf("%w: REFUSE for fetch %d, which is not outstanding", transport.ErrMalformed, h.ID)
	}
	*c = transport.Completion{Fetch: p.Fetch, Sent: p.sent, Wire: time.Since(p.sent), WireBytes: transport.HeaderSize + len(text),
		Refused: &transport.RemoteError{Code: transport.Code(h.Aux), Text: string(text)}}
	f.progress.Add(1)
	return f.answered(h.ID, false), nil
}

// answer is one PAGES frame on its way in.
type answer struct {
	h     transport.Header
	reg   transport.Region
	data  int // pages that come as bytes
	table int // bytes of extents
	same  int // pages that the candidates are
	moved int // pages that candidates of others are
	again int // pages that repeat others
	plain bool
}

// pages takes a PAGES frame that in reads; told says that c is to be reported.
func (f *Fetcher) pages(in *assembly, h *transport.Header, crc uint32, sink transport.Sink, c *transport.Completion) (told bool, err error) {
	p, ok := f.lookup(h.ID)
	if !ok {
		return false, fmt.Errorf("%w: PAGES for fetch %d, which is not outstanding", transport.ErrMalformed, h.ID)
	}
	message := in == &f.message
	if message && !p.invited {
		return false, fmt.Errorf("%w: a message answers fetch %d, which did not ask for one", transport.ErrMalformed, h.ID)
	}
	want := p.Fetch
	want.ID, want.Plain = p.wire, false
	if h.Fetch() != want {
		return false, fmt.Errorf("%w: PAGES answers fetch %+v with %+v", transport.ErrMalformed, want, h.Fetch())
	}
	reg, ok := f.c.region(h.Region)
	if !ok {
		return false, fmt.Errorf("receive pages of region %d: not in the table given to SetRegions", h.Region)
	}
	if err := in.take(&p, reg, h, crc, sink, c); err != nil {
		return false, err
	}
	return f.answered(h.ID, message), nil
}

// take brings the pages of an answer to the sink.
func (f *assembly) take(p *pending, reg transport.Region, h *transport.Header, crc uint32, sink transport.Sink, c *transport.Completion) error {
	a := answer{h: *h, reg: reg, plain: p.Plain}
	crc, err := f.extents(&a, crc)
	if err != nil {
		return err
	}
	*c = transport.Completion{Fetch: p.Fetch, Sent: p.sent, WireBytes: transport.HeaderSize + int(h.Length),
		Data: uint32(a.data), Ahead: h.Ahead, Codec: h.Codec()}
	for i := range f.ext {
		switch e := &f.ext[i]; {
		case e.Kind == transport.Data:
		case e.Kind == transport.Same:
			c.Same += e.Count
		case e.Kind == transport.Moved:
			c.Moved += e.Count
		case e.Kind == transport.Repeat:
			c.Repeat += e.Count
		case e.Word == 0:
			c.Zero += e.Count
		default:
			c.Fill += e.Count
		}
	}
	f.layout(int(h.Count))
	f.reserve(sink, p.Range)
	done, err := f.deliver(&a, crc, sink, c)
	if err != nil {
		f.abort(sink, p.Range, done)
	}
	clear(f.dst)
	clear(f.own)
	clear(f.data)
	f.land = nil
	return err
}

// extents reads and checks the extent table and everything else about the
// answer that does not need its data. Afterwards ext covers the range.
func (f *assembly) extents(a *answer, crc uint32) (uint32, error) {
	h, feat := &a.h, f.c.Features()
	bad := func(format string, args ...any) (uint32, error) {
		return 0, fmt.Errorf("%w: PAGES id %d "+format, append([]any{transport.ErrMalformed, h.ID}, args...)...)
	}
	n := int(h.Aux)
	a.table = n * transport.ExtentSize
	switch {
	case n > 0 && feat&transport.FeatureFill == 0:
		return bad("has extents, but fill elision is not in force")
	case n > int(h.Count):
		return bad("has %d extents for %d pages", n, h.Count)
	case a.table > int(h.Length):
		return bad("has %d extents in a body of %d bytes", n, h.Length)
	case !feat.Codec(h.Codec()):
		return bad("uses %v, which is not in force", h.Codec())
	case h.Ahead != 0 && feat&transport.FeatureAhead == 0:
		return bad("has ahead set, but the feature is not in force")
	case uint64(h.Ahead) > a.reg.Pages-h.First-uint64(h.Count):
		return bad("has ahead %d, which reaches past the region's %d pages", h.Ahead, a.reg.Pages)
	}
	f.ext = f.ext[:0]
	if n == 0 {
		f.ext = append(f.ext, transport.Extent{Count: h.Count})
		a.data = int(h.Count)
	} else {
		table, err := f.plain.get(a.table)
		if err != nil {
			return 0, err
		}
		if err := f.in.readFull(table); err != nil {
			return 0, err
		}
		crc = transport.UpdateCRC(crc, table)
		es, data, err := transport.ParseExtents(f.ext, table, h.Count)
		if err != nil {
			return 0, err
		}
		f.ext, a.data = es, int(data)
		for i := range es {
			switch es[i].Kind {
			case transport.Same:
				a.same += int(es[i].Count)
			case transport.Moved:
				if es[i].Word >= a.reg.Pages || uint64(es[i].Count) > a.reg.Pages-es[i].Word {
					return bad("has pages moved from %d+%d of a region with %d", es[i].Word, es[i].Count, a.reg.Pages)
				}
				a.moved += int(es[i].Count)
			case transport.Repeat:
				a.again += int(es[i].Count)
			}
		}
	}
	if a.same > 0 && (a.plain || feat&transport.FeatureWarm == 0) {
		return bad("says same of %d pages, which the fetch did not allow", a.same)
	}
	if a.moved > 0 && (a.plain || feat&movedFeatures != movedFeatures) {
		return bad("says moved of %d pages, which the fetch did not allow", a.moved)
	}
	if a.again > 0 && feat&transport.FeatureRepeat == 0 {
		return bad("repeats %d pages, but the feature is not in force", a.again)
	}
	body, want := int(h.Length)-a.table, a.data*int(a.reg.PageSize)
	switch {
	case h.Codec() == transport.CodecNone && body != want:
		return bad("has %d bytes of data for %d pages of %d bytes", body, a.data, a.reg.PageSize)
	case h.Codec() != transport.CodecNone && (want == 0 || want > int(transport.MaxBodyLimit) || body >= want):
		return bad("has %d bytes of %v data for %d pages of %d bytes", body, h.Codec(), a.data, a.reg.PageSize)
	}
	return crc, nil
}

// layout splits the range of count pages into runs, from ext.
func (f *assembly) layout(count int) {
	f.runs = f.runs[:0]
	add := func(r run) {
		if n := len(f.runs); n > 0 && f.runs[n-1].zero == r.zero {
			f.runs[n-1].n += r.n
			return
		}
		f.runs = append(f.runs, r)
	}
	at := 0
	for i := range f.ext {
		e := &f.ext[i]
		zero := e.Kind == transport.Fill && e.Word == 0
		if zero && at > 0 && at+int(e.Count) < count && e.Count < zeroGap {
			zero = f.runs[len(f.runs)-1].zero
		}
		add(run{at, int(e.Count), zero})
		at += int(e.Count)
	}
}

func (r run) of(whole transport.Range) transport.Range {
	return transport.Range{Region: whole.Region, First: whole.First + uint64(r.at), Count: uint32(r.n)}
}

func (f *assembly) reserve(sink transport.Sink, whole transport.Range) {
	if cap(f.dst) < int(whole.Count) {
		f.dst = make([][]byte, whole.Count)
	}
	f.dst = f.dst[:whole.Count]
	for _, r := range f.runs {
		if !r.zero {
			sink.Reserve(r.of(whole), f.dst[r.at:r.at+r.n])
		}
	}
}

func (f *assembly) abort(sink transport.Sink, whole transport.Range, done int) {
	for _, r := range f.runs[done:] {
		if !r.zero {
			sink.Abort(r.of(whole), f.dst[r.at:r.at+r.n])
		}
	}
}

// deliver brings the data into place and commits it. It returns how many runs
// are no longer the caller's to abort.
func (f *assembly) deliver(a *answer, crc uint32, sink transport.Sink, c *transport.Completion) (int, error) {
	ps := int(a.reg.PageSize)
	for i, m := range f.dst {
		if m != nil && len(m) != ps {
			return 0, fmt.Errorf("sink reserved %d bytes for page %d of region %d, whose pages have %d", len(m), c.First+uint64(i), c.Region, ps)
		}
	}
	if err := f.write(a, crc, c); err != nil {
		return 0, err
	}
	if a.same+a.moved > 0 {
		if err := f.same(sink, c.Range); err != nil {
			return 0, err
		}
	}
	decoded := time.Since(c.Sent)
	c.Decode = decoded - c.Wire
	n, err := f.commit(sink, c.Range, c.Ahead)
	c.Commit = time.Since(c.Sent) - decoded
	return n, err
}

// write brings the data into the reserved memory and verifies it. That memory
// may be a file's: if its file system is full the kernel answers a store by
// SIGBUS, which becomes an error here.
func (f *assembly) write(a *answer, crc uint32, c *transport.Completion) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer onFault(&err)
	ps := int(a.reg.PageSize)
	if err := f.place(a, ps); err != nil {
		return err
	}
	var body []byte
	if a.h.Codec() == transport.CodecNone {
		crc, err = f.readPages(ps, crc)
	} else {
		body, crc, err = f.readEncoded(int(a.h.Length)-a.table, crc)
	}
	if errors.Is(err, unix.EFAULT) { // the same, in a system call
		return fmt.Errorf("write received pages: %w: %w", transport.ErrNoMemory, err)
	}
	if err != nil {
		return err
	}
	c.Wire = time.Since(c.Sent)
	if err := a.h.CheckCRC(crc); err != nil {
		return err
	}
	if a.h.Codec() != transport.CodecNone { // body may be empty, which no codec makes
		if err := f.decode(a.h.Codec(), body, a.data*ps, ps); err != nil {
			return err
		}
	}
	f.fill(ps)
	return nil
}

// same has the sink look at the pages that it has already.
func (f *assembly) same(sink transport.Sink, whole transport.Range) error {
	warm, ok := sink.(transport.WarmSink)
	if !ok {
		return fmt.Errorf("the warm feature is in force on a channel whose sink (%T) has no candidates", sink)
	}
	at := 0
	for i := range f.ext {
		e := &f.ext[i]
		n := int(e.Count)
		r, dst := run{at: at, n: n}.of(whole), f.dst[at:at+n]
		var err error
		switch e.Kind {
		case transport.Same:
			err = warm.Same(r, dst)
		case transport.Moved:
			err = warm.Moved(r, e.Word, dst)
		}
		if err != nil {
			return err
		}
		at += n
	}
	return nil
}

// onFault turns the run-time error of a memory fault into err; any other panic
// goes on.
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
	*err = fmt.Errorf("write received pages at address %#x: %w: %w", fault.Addr(), transport.ErrNoMemory, fault)
}

func (f *assembly) commit(sink transport.Sink, whole transport.Range, ahead uint32) (int, error) {
	for i, r := range f.runs {
		sub := r.of(whole)
		if !r.zero {
			if err := sink.Commit(sub, f.dst[r.at:r.at+r.n]); err != nil {
				return i + 1, fmt.Errorf("commit %d pages at %d of region %d: %w", sub.Count, sub.First, sub.Region, err)
			}
			continue
		}
		// A zero tail and what lies ahead of it are one range, unless the sum
		// does not fit.
		if i == len(f.runs)-1 && sub.Count+ahead >= ahead {
			sub.Count += ahead
			ahead = 0
		}
		if err := sink.Zero(sub); err != nil {
			return i + 1, fmt.Errorf("zero %d pages at %d of region %d: %w", sub.Count, sub.First, sub.Region, err)
		}
	}
	if ahead > 0 {
		r := transport.Range{Region: whole.Region, First: whole.First + uint64(whole.Count), Count: ahead}
		if err := sink.Zero(r); err != nil {
			return len(f.runs), fmt.Errorf("zero %d pages at %d of region %d: %w", r.Count, r.First, r.Region, err)
		}
	}
	return len(f.runs), nil
}
