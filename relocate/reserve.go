package relocate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

// DefaultReserve is what the daemon uses: a host reserves 0.6 to 2 GiB in that time, and
// the guest still runs at the destination within a second of the command.
const DefaultReserve = 500 * time.Millisecond

const (
	// reserveGap is the longest hole, in pages, that is reserved with what is around it.
	reserveGap = faultd.ReserveGranule
	// maxDataRuns bounds the list in OFFER; what is beyond is not reserved.
	maxDataRuns = 1 << 15
	// reservePages are reserved between two looks at the clock.
	reservePages = 512
	// reservePageSize is that of what can be reserved: hugetlbfs cannot.
	reservePageSize = 4096
)

// dataRuns lists the stretches of the memory that are no holes, short holes between
// them included. It walks the page cache of the files, some 0.1 µs a page.
func dataRuns(memory []memoryRecord, regions []transport.Region) ([]pagecache.Run, error) {
	var runs []pagecache.Run
	for i, m := range memory {
		if err := m.dataRuns(&runs, &regions[i]); err != nil {
			return nil, fmt.Errorf("data of the memory: %w", err)
		}
	}
	return runs, nil
}

func (m memoryRecord) dataRuns(runs *[]pagecache.Run, r *transport.Region) error {
	f, err := m.open()
	if err != nil {
		return err
	}
	defer f.Close()
	size, all := uint64(r.PageSize), *runs
	defer func() { *runs = all }()
	for at := uint64(0); at < r.Pages*size && len(all) < maxDataRuns; {
		start, end, err := sysmem.NextData(int(f.Fd()), int64(at))
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		at = uint64(end)
		first := uint64(start) / size
		count := min((at+size-1)/size, r.Pages) - min(first, r.Pages)
		if n := len(all); n > 0 && all[n-1].Region == r.ID {
			last := &all[n-1]
			if lastEnd := last.First + uint64(last.Count); first <= lastEnd+reserveGap && first+count-last.First <= 1<<31 {
				last.Count = uint32(first + count - last.First)
				continue
			}
		}
		for count > 0 {
			n := min(count, 1<<31)
			all = append(all, pagecache.Run{Region: r.ID, First: first, Count: uint32(n)})
			first, count = first+n, count-n
		}
	}
	return nil
}

// reserve allocates memory for what the source has data in, while its machine still
// runs, for no longer than the host's limit. That there is no room ends the relocation,
// here where that costs nothing; every other trouble costs speed at most. A source that
// names more than the memory that accept has found room for gets no more than that.
func (in *incoming) reserve(ctx context.Context, o *offer) error {
	limit, most := in.host.cfg.Reserve, uint64(o.Allocated)/reservePageSize
	if limit <= 0 || len(o.Data) == 0 || in.rec.Options.OnDemandOnly || in.isWarm() {
		return nil // candidates take memory of their own
	}
	runs, err := parseRuns(o.Data)
	if err != nil {
		in.warn("no memory is reserved: the source's list of data is damaged", "err", err)
		return nil
	}
	began, pages := time.Now(), uint64(0)
	for _, run := range runs {
		for run.Count > 0 && ctx.Err() == nil && time.Since(began) < limit && pages < most {
			r := transport.Range(run)
			// The first piece ends where a granule does, and so do all but the last.
			r.Count = min(run.Count, reservePages-uint32(run.First%faultd.ReserveGranule))
			n, err := in.memory.engine.Reserve(r)
			pages += n
			switch {
			case errors.Is(err, faultd.ErrNoReserver):
				return nil
			case errors.Is(err, transport.ErrNoMemory):
				return fmt.Errorf("out of memory for the guest, of which %d MiB were reserved: %w; free some or choose another host", pages*reservePageSize>>20, err)
			case err != nil:
				in.warn("memory is reserved in part", "err", err)
				return nil
			}
			run.First, run.Count = run.First+uint64(r.Count), run.Count-r.Count
		}
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	in.update(func(s *Status) { s.PagesReserved = pages })
	in.note("memory", fmt.Sprintf("%d MiB of memory reserved in %v", pages*reservePageSize>>20, time.Since(began).Round(time.Millisecond)))
	return nil
}
