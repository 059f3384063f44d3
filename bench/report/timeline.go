package report

import "time"

// Timeline is what happened over time. All times are seconds from the
// switch-over (the guest's stop at the source); they are negative before it.
type Timeline struct {
	Title    string   `json:"title"`
	BinMS    float64  `json:"bin_ms"`
	Requests []Point  `json:"requests"` // answers per second in the bin that starts at T
	Samples  []Sample `json:"samples"`  // of the destination, in order
	// DrainedS is when the last page was resident; 0 when that was not seen.
	DrainedS   float64 `json:"drained_s"`
	DowntimeMS float64 `json:"downtime_ms"`
	// BeforePerSec is the mean rate before; 0.9 of it is the warm-up threshold.
	BeforePerSec float64 `json:"before_per_s"`
}

// Point is one value at one time.
type Point struct {
	T float64 `json:"t_s"`
	V float64 `json:"v"`
}

// Sample is the destination's progress at one time.
type Sample struct {
	T        float64 `json:"t_s"`
	Demand   uint64  `json:"pages_demand"`
	Resident uint64  `json:"pages_resident"`
	Total    uint64  `json:"pages_total"`
}

// AddBins appends the counts of a client's bins of the given width, the first
// of which started at start, to the request series.
func (t *Timeline) AddBins(start, switchover time.Time, width time.Duration, counts []uint64) {
	t.BinMS = float64(width) / 1e6
	for i, n := range counts {
		at := start.Add(time.Duration(i) * width).Sub(switchover)
		t.Requests = append(t.Requests, Point{T: at.Seconds(), V: float64(n) / width.Seconds()})
	}
}

// demandRate is the demand faults per second between neighbouring samples.
func (t *Timeline) demandRate() []Point {
	var ps []Point
	for i := 1; i < len(t.Samples); i++ {
		a, b := t.Samples[i-1], t.Samples[i]
		if dt := b.T - a.T; dt > 0 {
			ps = append(ps, Point{T: b.T, V: float64(b.Demand-min(a.Demand, b.Demand)) / dt})
		}
	}
	return ps
}

// residentShare is the share of pages that are resident, in percent.
func (t *Timeline) residentShare() []Point {
	var ps []Point
	for _, s := range t.Samples {
		if s.Total > 0 {
			ps = append(ps, Point{T: s.T, V: 100 * float64(s.Resident) / float64(s.Total)})
		}
	}
	return ps
}
