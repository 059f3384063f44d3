package pagecache

import "fmt"

// Prefer has pages fetched as the [Lister] among the policies sees fit: before
// what policies after it propose. The runs are in order of preference, and come
// before those of earlier calls. Nothing is taken if one of them lies outside of
// the regions, or if they are too many; without a Lister they are ignored.
func (p *Planner) Prefer(runs []Run) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	spans, err := p.spans(runs)
	if err != nil {
		return err
	}
	for _, pol := range p.cfg.Policies {
		if l, ok := pol.(Lister); ok {
			l.List(spans)
			p.dry = false
		}
	}
	return nil
}

// Begin has the [Beginner] among the policies take the blocks of pages before all else
// that only it proposes. What Prefer says of its runs goes for these.
func (p *Planner) Begin(runs []Run) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	spans, err := p.spans(runs)
	if err != nil {
		return err
	}
	var blocks []Span
	for _, s := range spans {
		size := p.regions[s.Region].block
		b := Span{Region: s.Region, Block: s.First / size}
		b.Count = (s.First+s.Count+size-1)/size - b.Block
		blocks = append(blocks, b)
	}
	for _, pol := range p.cfg.Policies {
		if l, ok := pol.(Beginner); ok {
			l.Begin(blocks)
			p.dry = false
		}
	}
	return nil
}

// spans checks a list. mu is held.
func (p *Planner) spans(runs []Run) ([]PageSpan, error) {
	if len(runs) > MaxListed {
		return nil, fmt.Errorf("list of %d runs: at most %d are taken", len(runs), MaxListed)
	}
	index := *p.index.Load()
	spans := make([]PageSpan, len(runs))
	for i, run := range runs {
		r := index[run.Region]
		if r == nil {
			return nil, fmt.Errorf("list names region %d, which there is not", run.Region)
		}
		if pages := r.res.Pages(); run.Count == 0 || run.First >= pages || uint64(run.Count) > pages-run.First {
			return nil, fmt.Errorf("list names pages %d+%d of region %d, which has %d", run.First, run.Count, run.Region, pages)
		}
		spans[i] = PageSpan{Region: r.slot, First: run.First, Count: uint64(run.Count)}
	}
	return spans, nil
}

// Hold with on true lets only listed pages (Prefer) be handed out, until Hold
// with on false.
func (p *Planner) Hold(on bool) {
	p.mu.Lock()
	p.held, p.dry = on, false
	p.mu.Unlock()
}
