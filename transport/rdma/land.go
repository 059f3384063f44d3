package rdma

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
)

// land brings the pages of completed READs to their place, and posts what waited
// for a slot.
func (f *Fetcher) land(dones []done) error {
	for i := range dones {
		d := &dones[i]
		if d.id >= uint64(len(f.ops)) {
			f.breakDown(fmt.Errorf("a completion has the unknown id %d", d.id))
			return nil
		}
		if d.status != 0 {
			f.breakDown(fmt.Errorf("READ failed: %s (vendor code %#x)", statusText(d.status), d.vendor))
			return nil
		}
		// The op is ours until its slot is free: nobody else touches it.
		o := &f.ops[d.id]
		f.stats.Completed.Add(1)
		at, err := time.Now(), error(nil)
		if o.placed {
			at, err = f.landed(&o.parts[0], at)
		} else {
			at, err = f.unload(o, f.stage[int(d.id)*f.slotSize:], at)
		}
		if err != nil {
			return err
		}
		f.mu.Lock()
		for _, p := range o.parts {
			f.came(p.fl)
		}
		probe := o.probe
		f.freed(int(d.id), at)
		if probe {
			f.proved()
		}
		f.post(at)
		f.mu.Unlock()
	}
	return nil
}

// unload brings the parts of an op out of the stage. It begins at a time and returns
// that of its end.
func (f *Fetcher) unload(o *op, mem []byte, at time.Time) (time.Time, error) {
	for _, p := range o.parts {
		ps := int(p.fl.reg.PageSize)
		size := int(p.count) * ps
		var err error
		if at, err = f.deliver(p, mem[:size], ps, at); err != nil {
			return at, err
		}
		mem = mem[size:]
	}
	return at, nil
}

// landed ends the claims of a part that is in place, run by run: pages that read as zero
// are given back. What is left of the part on an error is to be reclaimed.
func (f *Fetcher) landed(p *part, begin time.Time) (end time.Time, err error) {
	fl, mem := p.fl, p.mem
	ps := int(fl.reg.PageSize)
	fl.wire = begin.Sub(fl.sent)
	fl.bytes += len(mem)
	f.stats.Bytes.Add(uint64(len(mem)))
	f.stats.InPlace.Add(uint64(p.count))
	f.blank = lookForZero(f.blank[:0], mem, ps)
	for at := 0; at < len(f.blank); {
		zero, n := f.blank[at], 1
		for at+n < len(f.blank) && f.blank[at+n] == zero {
			n++
		}
		r := transport.Range{Region: fl.Region, First: p.first, Count: uint32(n)}
		p.first, p.count = p.first+uint64(n), p.count-uint32(n)
		if err := f.sink.landed(r, zero); err != nil {
			return begin, fmt.Errorf("install %d pages at %d of region %d: %w", n, r.First, r.Region, err)
		}
		if zero {
			fl.zero += r.Count
		} else {
			fl.data += r.Count
		}
		at += n
	}
	end = time.Now()
	fl.commit += end.Sub(begin)
	return end, nil
}

// lookForZero appends, for each page of mem, whether it reads as zero. A page that the
// guest has given back meanwhile, and that there is no memory for, counts as zero.
func lookForZero(blank []bool, mem []byte, ps int) []bool {
	for len(mem) > 0 {
		whole := len(blank) + len(mem)/ps
		if blank = looked(blank, mem, ps); len(blank) == whole {
			break
		}
		mem = mem[len(mem)-(whole-len(blank))*ps:][ps:]
		blank = append(blank, true)
	}
	return blank
}

// looked is lookForZero as far as the first page that has no memory.
func looked(in []bool, mem []byte, ps int) (blank []bool) {
	blank = in
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			if _, fault := p.(interface{ Addr() uintptr }); !fault {
				panic(p)
			}
		}
	}()
	for len(mem) > 0 {
		blank = append(blank, isZero(mem[:ps]))
		mem = mem[ps:]
	}
	return blank
}

// deliver gives the pages of one part to the sink, run by run: those that read as
// zero stay holes. It begins at a time and returns that of its end.
func (f *Fetcher) deliver(p part, mem []byte, ps int, begin time.Time) (end time.Time, err error) {
	fl := p.fl
	end = begin
	fl.wire = begin.Sub(fl.sent)
	fl.bytes += len(mem)
	f.stats.Bytes.Add(uint64(len(mem)))
	for at := uint32(0); at < p.count; {
		zero := isZero(mem[int(at)*ps:][:ps])
		n := uint32(1)
		for at+n < p.count && isZero(mem[int(at+n)*ps:][:ps]) == zero {
			n++
		}
		r := transport.Range{Region: fl.Region, First: p.first + uint64(at), Count: n}
		start := end
		copied := time.Duration(0)
		if zero {
			fl.zero += n
			err = f.sink.Zero(r)
		} else {
			fl.data += n
			copied, err = f.place(r, mem[int(at)*ps:][:int(n)*ps], ps, start)
		}
		if err != nil {
			return end, fmt.Errorf("install %d pages at %d of region %d: %w", n, r.First, r.Region, err)
		}
		at += n
		end = time.Now()
		fl.copied += copied
		fl.commit += end.Sub(start) - copied
	}
	return end, nil
}

func isZero(page []byte) bool {
	word, same := sysmem.SameFill(page)
	return same && word == 0
}

// place claims the pages of r, writes those it got, which takes the time copied
// from start on, and commits them; or has the sink do all of it.
func (f *Fetcher) place(r transport.Range, mem []byte, ps int, start time.Time) (copied time.Duration, err error) {
	if cap(f.dst) < int(r.Count) {
		f.dst = make([][]byte, r.Count)
	}
	dst := f.dst[:r.Count]
	defer clear(dst)
	if f.sink.takes() {
		for i := range dst {
			dst[i] = mem[i*ps : (i+1)*ps : (i+1)*ps]
		}
		return 0, f.sink.take(r, dst)
	}
	f.sink.Reserve(r, dst)
	if err := write(dst, mem, ps); err != nil {
		f.sink.Abort(r, dst)
		return 0, err
	}
	copied = time.Since(start)
	return copied, f.sink.Commit(r, dst)
}

// write copies pages. A file system that is full answers a store by SIGBUS, which
// becomes an error.
func write(dst [][]byte, mem []byte, ps int) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
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
		err = fmt.Errorf("write received pages at address %#x: %w: %w", fault.Addr(), transport.ErrNoMemory, fault)
	}()
	for i, d := range dst {
		if d != nil {
			if len(d) != ps {
				return fmt.Errorf("sink reserved %d bytes for a page of %d", len(d), ps)
			}
			copy(d, mem[i*ps:])
		}
	}
	return nil
}
