package rdma

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/pagewarp/pagewarp/transport"
)

// Bounds of a registration of a Landing: longer stretches are cut, so that the first
// READs need not wait for all of it; shorter ones are not worth a key.
const (
	maxPlot = 64 << 20
	minPlot = 64 << 10
)

// Stretch is memory at the destination that is the place of absent pages.
type Stretch struct {
	transport.Range
	Memory []byte // of all its pages, allocated, and mapped until the Landing is closed
}

// LandingOptions are the choices of a destination.
type LandingOptions struct {
	// Budget bounds the registered, and so pinned, memory in bytes; 0 leaves it to the
	// kernel (RLIMIT_MEMLOCK). Pages of what does not fit go by the staging buffers.
	Budget uint64
	// Report, if not nil, is told once why something was not registered. It must not wait.
	Report func(error)
}

// Landing is memory of the guest's that READs land in. All channels of a session share
// one. It registers in the background: pages of what is not registered yet go by the
// staging buffers of their channels.
type Landing struct {
	dev   *Device
	opt   LandingOptions
	plots map[uint32][]*plot // immutable; by region, in order, without overlap
	used  atomic.Uint64      // registered bytes
	stop  chan struct{}
	done  chan struct{} // nothing more will be registered
	once  sync.Once
}

// plot is what is registered at once.
type plot struct {
	Stretch
	mr atomic.Pointer[region] // nil: not registered, or not yet
}

// NewLanding begins to register memory with dev, in the order given. The stretches do
// not overlap.
func NewLanding(dev *Device, stretches []Stretch, o LandingOptions) (*Landing, error) {
	l := &Landing{dev: dev, opt: o, plots: make(map[uint32][]*plot), stop: make(chan struct{}), done: make(chan struct{})}
	var order []*plot
	for _, s := range stretches {
		if s.Count == 0 || len(s.Memory)%int(s.Count) != 0 {
			return nil, fmt.Errorf("%d bytes are no memory of the %d pages from %d on of region %d", len(s.Memory), s.Count, s.First, s.Region)
		}
		ps := len(s.Memory) / int(s.Count)
		for most := uint32(max(1, maxPlot/ps)); s.Count > 0 && len(s.Memory) >= minPlot; {
			n := min(most, s.Count)
			p := &plot{Stretch: Stretch{Range: transport.Range{Region: s.Region, First: s.First, Count: n}, Memory: s.Memory[:int(n)*ps]}}
			s.First, s.Count, s.Memory = s.First+uint64(n), s.Count-n, s.Memory[int(n)*ps:]
			order, l.plots[s.Region] = append(order, p), append(l.plots[s.Region], p)
		}
	}
	for _, ps := range l.plots {
		slices.SortFunc(ps, func(a, b *plot) int { return cmp.Compare(a.First, b.First) })
		for i := 1; i < len(ps); i++ {
			if end := ps[i-1].First + uint64(ps[i-1].Count); ps[i].First < end {
				return nil, fmt.Errorf("stretches overlap at page %d of region %d", ps[i].First, ps[i].Region)
			}
		}
	}
	if err := dev.hold(); err != nil {
		return nil, err
	}
	go l.register(order)
	return l, nil
}

// register registers one plot after the other. What is refused once is refused from
// there on: the limits are those of all memory together.
func (l *Landing) register(order []*plot) {
	defer close(l.done)
	for _, p := range order {
		select {
		case <-l.stop:
			return
		default:
		}
		size := uint64(len(p.Memory))
		if l.opt.Budget != 0 && l.used.Load()+size > l.opt.Budget {
			l.report(fmt.Errorf("the budget of %d bytes for registered memory is used up (--rdma-budget)", l.opt.Budget))
			return
		}
		mr, err := l.dev.register(p.Memory, landing)
		if err != nil {
			l.report(err)
			return
		}
		l.used.Add(size)
		p.mr.Store(mr)
	}
}

func (l *Landing) report(err error) {
	if l.opt.Report != nil {
		l.opt.Report(fmt.Errorf("%d bytes of memory are ready for READs in place, no more: %w", l.used.Load(), err))
	}
}

// Done is closed when all is registered that will be.
func (l *Landing) Done() <-chan struct{} { return l.done }

// Registered returns the bytes that are registered now.
func (l *Landing) Registered() uint64 { return l.used.Load() }

// Close takes all registrations back; nothing of the memory is pinned by it any more. Its
// channels are closed before, the memory is unmapped after.
func (l *Landing) Close() (err error) {
	l.once.Do(func() {
		close(l.stop)
		<-l.done
		for _, ps := range l.plots {
			for _, p := range ps {
				if mr := p.mr.Swap(nil); mr != nil {
					err = errors.Join(err, mr.close())
				}
			}
		}
		l.used.Store(0)
		l.dev.drop()
	})
	return err
}

// at cuts a run of pages where its kind of memory ends, and returns how many are left,
// and their place with its key, if that is registered. A nil Landing has none.
func (l *Landing) at(id uint32, first uint64, count uint32) (n uint32, lkey uint32, mem []byte) {
	if l == nil {
		return count, 0, nil
	}
	ps := l.plots[id]
	i := sort.Search(len(ps), func(i int) bool { return ps[i].First+uint64(ps[i].Count) > first })
	if i == len(ps) {
		return count, 0, nil
	}
	p := ps[i]
	if first < p.First {
		return uint32(min(uint64(count), p.First-first)), 0, nil
	}
	at := first - p.First
	count = uint32(min(uint64(count), uint64(p.Count)-at))
	mr := p.mr.Load()
	if mr == nil {
		return count, 0, nil
	}
	size := uint64(len(p.Memory)) / uint64(p.Count)
	return count, mr.lkey, p.Memory[at*size : (at+uint64(count))*size]
}
