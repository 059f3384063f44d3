package fault

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
)

// Bounds of what Sweep takes.
const (
	MaxThreads  = touch.MaxThreads
	MaxChannels = 64 // of a session (docs/PROTOCOL.md)
	// HugePageSize is the other size of pages than 4096.
	HugePageSize = hugeSize
)

// SweepOptions say which combinations Sweep measures, each with the link idle.
// Zero values mean the defaults.
type SweepOptions struct {
	// Threads that touch at a time, and demand Channels. Default 1.
	Threads, Channels []int
	// Regions are sizes of memory in bytes, of which only the pages that are
	// touched are there; 0 is a region of just these pages, the default.
	Regions []uint64
	// PageSize is 4096, the default, or HugePageSize, of which the kernel must
	// have enough in reserve.
	PageSize uint32
	// Count is how many faults for each combination and pass. Default 3000, or 64
	// of huge pages. Repeat is how many passes. Default 3.
	Count, Repeat int
	TLS           bool
	// CPUs says where the two ends run.
	CPUs floor.CPUs
	// Step, if not nil, is told what goes on.
	Step func(string)
}

func (o *SweepOptions) fill() {
	if len(o.Threads) == 0 {
		o.Threads = []int{1}
	}
	if len(o.Channels) == 0 {
		o.Channels = []int{1}
	}
	if len(o.Regions) == 0 {
		o.Regions = []uint64{0}
	}
	if o.PageSize == 0 {
		o.PageSize = pageSize
	}
	if o.Count == 0 {
		o.Count = 3000
		if o.PageSize == hugeSize {
			o.Count = 64
		}
	}
	if o.Repeat == 0 {
		o.Repeat = 3
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
}

// Check reports what of the options is out of bounds; it sets the defaults.
func (o *SweepOptions) Check() error {
	o.fill()
	if o.PageSize != pageSize && o.PageSize != hugeSize {
		return fmt.Errorf("pages of %d bytes: the fault path serves pages of 4096 and of %d bytes", o.PageSize, hugeSize)
	}
	if o.Count < 1 || o.Count > 10_000_000 || o.Repeat < 1 {
		return fmt.Errorf("%d passes of %d faults: give at least one of each, and at most 10 million faults", o.Repeat, o.Count)
	}
	for _, n := range o.Threads {
		if n < 1 || n > MaxThreads {
			return fmt.Errorf("%d threads: between 1 and %d are possible", n, MaxThreads)
		}
	}
	for _, n := range o.Channels {
		if n < 1 || n > MaxChannels {
			return fmt.Errorf("%d demand channels: between 1 and %d are possible", n, MaxChannels)
		}
	}
	need := withWarmUp(o.Count) * uint64(o.PageSize)
	for _, size := range o.Regions {
		if size > maxRegion || size%uint64(o.PageSize) != 0 || size > 0 && size < need {
			return fmt.Errorf("region of %s: want whole pages, at most 1 TiB, and at least the %s that are touched", humanize.IBytes(size), humanize.IBytes(need))
		}
	}
	return nil
}

// roomForHuge refuses a measurement for which there are too few huge pages: to
// reserve them is the operator's business.
func roomForHuge(pages uint64) error {
	free, err := sysmem.FreeHugePages(hugeSize)
	if err != nil {
		return fmt.Errorf("pages of 2 MiB: this kernel has none: %w", err)
	}
	if free < pages {
		return fmt.Errorf("pages of 2 MiB: %d are needed, %d are free; reserve more, as by `sysctl vm.nr_hugepages=%d` if nothing else needs them, or lower the count", pages, free, pages)
	}
	return nil
}

// Cell is one combination, over all passes.
type Cell struct {
	// RegionBytes is the size of the region.
	RegionBytes uint64 `json:"region_bytes"`
	Threads     int    `json:"threads"`
	Channels    int    `json:"channels"`
	// PerSecond is faults by the clock on the wall, P50 and P99 are in µs.
	PerSecond report.Spread `json:"faults_per_s"`
	P50       report.Spread `json:"p50_us"`
	P99       report.Spread `json:"p99_us"`
	// Daemon and Server are the two processes' own memory after the faults,
	// Tables the larger of their page tables, in MiB.
	Daemon report.Spread `json:"daemon_mib"`
	Server report.Spread `json:"server_mib"`
	Tables report.Spread `json:"page_tables_mib"`
}

// SweepResult is all combinations, and the floors of a single thread, in µs, of
// the same passes.
type SweepResult struct {
	TLS        bool          `json:"tls"`
	PageSize   uint32        `json:"page_size"`
	Count      int           `json:"count"`
	Repeat     int           `json:"repeat"`
	CPUs       floor.CPUs    `json:"cpus"`
	LocalFault report.Spread `json:"local_fault_us"`
	RoundTrip  report.Spread `json:"rtt_us"`
	Cells      []Cell        `json:"cells"`
}

// samples are the figures of one Cell, one of each a pass.
type samples struct{ rate, p50, p99, daemon, server, tables []float64 }

// Sweep measures faults over an idle link for every combination of regions,
// threads and channels, all of them in each pass. Each of a pass's faults is of
// a page that was not touched before, and all pages are compared after it. With an
// error the result has the combinations of which a pass was finished, and is nil
// without any.
func Sweep(ctx context.Context, o SweepOptions) (*SweepResult, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	if o.PageSize == hugeSize {
		if err := roomForHuge(withWarmUp(o.Count)); err != nil {
			return nil, err
		}
	}
	if err := roomFor((uint64(len(o.Regions)) + 1) * withWarmUp(o.Count) * uint64(o.PageSize)); err != nil {
		return nil, err
	}
	r := &SweepResult{TLS: o.TLS, PageSize: o.PageSize, Count: o.Count, Repeat: o.Repeat, CPUs: o.CPUs}
	touched := withWarmUp(o.Count)
	images := make([]*Image, len(o.Regions))
	for i, size := range o.Regions {
		pages := size / uint64(o.PageSize)
		if size == 0 {
			pages = touched
		}
		im, err := NewImage(ImageOptions{Pages: pages, PageSize: o.PageSize, Data: touched})
		if err != nil {
			return nil, err
		}
		defer im.Close()
		images[i] = im
		for _, c := range o.Channels {
			for _, n := range o.Threads {
				r.Cells = append(r.Cells, Cell{RegionBytes: uint64(im.size()), Threads: n, Channels: c})
			}
		}
	}
	all := make([]samples, len(r.Cells))
	perImage := len(o.Channels) * len(o.Threads)
	var local, trip []float64
	finished := func() *SweepResult {
		r.LocalFault, r.RoundTrip = report.SpreadOf(local), report.SpreadOf(trip)
		for i, s := range all {
			c := &r.Cells[i]
			c.PerSecond, c.P50, c.P99 = report.SpreadOf(s.rate), report.SpreadOf(s.p50), report.SpreadOf(s.p99)
			c.Daemon, c.Server, c.Tables = report.SpreadOf(s.daemon), report.SpreadOf(s.server), report.SpreadOf(s.tables)
		}
		if r.Cells = slices.DeleteFunc(r.Cells, func(c Cell) bool { return c.PerSecond.N == 0 }); len(r.Cells) == 0 {
			return nil
		}
		return r
	}
	for pass := range o.Repeat {
		p, err := o.floors(ctx)
		if err != nil {
			return finished(), err
		}
		local, trip = append(local, p.LocalFault.P50), append(trip, p.RoundTrip.P50)
		for i, c := range r.Cells {
			o.Step(fmt.Sprintf("pass %d of %d: %s, %d threads, %d channels", pass+1, o.Repeat, humanize.IBytes(c.RegionBytes), c.Threads, c.Channels))
			if err := o.cell(ctx, images[i/perImage], c, &all[i]); err != nil {
				return finished(), fmt.Errorf("region of %s, %d threads, %d channels: %w", humanize.IBytes(c.RegionBytes), c.Threads, c.Channels, err)
			}
		}
	}
	return finished(), nil
}

// floors takes those of one pass.
func (o *SweepOptions) floors(ctx context.Context) (Pass, error) {
	ctx, cancel := Bounded(ctx, 0, 0)
	defer cancel()
	p, err := floors(ctx, o.CPUs, floor.Loopback, max(o.Count, 1000))
	return p, Because(ctx, err)
}

// cell measures one combination once, by processes of its own.
func (o *SweepOptions) cell(ctx context.Context, im *Image, c Cell, s *samples) (err error) {
	ctx, cancel := Bounded(ctx, withWarmUp(o.Count)*uint64(o.PageSize), 0)
	defer cancel()
	defer func() { err = Because(ctx, err) }()
	e, err := NewEngine(ctx, im, Options{CPUs: o.CPUs, TLS: o.TLS, Demand: c.Channels, Precache: 1, Codec: "none"})
	if err != nil {
		return err
	}
	defer e.Close()
	ds, took, err := e.touchAll(c.Threads, o.Count)
	if err != nil {
		return err
	}
	st, err := e.Stats()
	if err != nil {
		return err
	}
	l := report.Summarize(ds)
	s.rate = append(s.rate, float64(len(ds))/max(took, time.Nanosecond).Seconds())
	s.p50, s.p99 = append(s.p50, l.P50), append(s.p99, l.P99)
	s.daemon, s.server = append(s.daemon, mib(st.Memory.Anonymous)), append(s.server, mib(st.ServerMemory.Anonymous))
	s.tables = append(s.tables, mib(max(st.Memory.PageTables, st.ServerMemory.PageTables)))
	return nil
}

func mib(n uint64) float64 { return float64(n) / (1 << 20) }

// Text writes the table.
func (r *SweepResult) Text(w io.Writer) error {
	fmt.Fprintf(w, "demand faults of %s pages, link idle, %d × %d for each row; floors of one thread and 4 KiB, p50: local fault %s µs, round trip %s µs\n\n",
		humanize.IBytes(uint64(r.PageSize)), r.Repeat, r.Count, r.LocalFault.Text(), r.RoundTrip.Text())
	header := []string{"region", "threads", "channels", "faults/s", "p50 µs", "p99 µs", "daemon MiB", "server MiB", "page tables MiB"}
	var rows [][]string
	for _, c := range r.Cells {
		rows = append(rows, []string{humanize.IBytes(c.RegionBytes), fmt.Sprint(c.Threads), fmt.Sprint(c.Channels),
			c.PerSecond.Text(), c.P50.Text(), c.P99.Text(), c.Daemon.Text(), c.Server.Text(), c.Tables.Text()})
	}
	if err := report.Table(w, header, rows); err != nil {
		return err
	}
	best := slices.MaxFunc(r.Cells, func(a, b Cell) int {
		switch {
		case a.PerSecond.Median < b.PerSecond.Median:
			return -1
		case a.PerSecond.Median > b.PerSecond.Median:
			return 1
		}
		return 0
	})
	_, err := fmt.Fprintf(w, "\nmost faults/s: %s by %d threads over %d channels; memory is what the processes have of their own after the faults\n",
		report.Number(best.PerSecond.Median), best.Threads, best.Channels)
	return err
}
