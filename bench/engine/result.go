package engine

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/bench/workloads"
	"github.com/pagewarp/pagewarp/relocate"
)

// Result is a comparison.
type Result struct {
	Load     workloads.Load `json:"load"`
	LoadText string         `json:"load_text"`
	// Subject is what was moved: a guest, if empty, or the work of a process, whose
	// memory is then RAMBytes.
	Subject string `json:"subject,omitempty"`
	// Unit names what is counted, such as touches.
	Unit     string `json:"unit"`
	RAMBytes uint64 `json:"ram_bytes"`
	VCPUs    int    `json:"vcpus"`
	// LinkBytesPerSec is 0 for no limit.
	LinkBytesPerSec uint64 `json:"link_bytes_per_s"`
	// Accel is what the guests ran under; of several, as engines may have QEMUs of
	// their own, all are named, and each row has its own.
	Accel  string `json:"accel"`
	Repeat int    `json:"repeat"`
	// Facts are of the engines that could run, by name.
	Facts       map[string]Facts `json:"facts"`
	Unavailable []Unavailable    `json:"unavailable"`
	Engines     []Summary        `json:"engines"`
	Rows        []Row            `json:"rows"`
}

// Unavailable is an engine that cannot run here.
type Unavailable struct {
	Engine string `json:"engine"`
	Reason string `json:"reason"`
}

// Row is one relocation. Times are in ms; of one with an Error, what was
// reached is filled in.
type Row struct {
	Engine   string `json:"engine"`
	Run      int    `json:"run"`
	Error    string `json:"error,omitempty"`
	Accel    string `json:"accel,omitempty"`
	Settings string `json:"settings"`
	// TotalMS is from the command, the destination's QEMU still to be started, until
	// all memory is there and nothing is needed of the source, 0 of one on demand
	// that was not complete when it had been watched; DowntimeMS from
	// the source's stop to the destination's resume; StoppedMS from the command
	// to the stop.
	TotalMS    float64 `json:"total_ms"`
	StoppedMS  float64 `json:"stopped_ms"`
	DowntimeMS float64 `json:"downtime_ms"`
	// BlackoutMS is the client's longest time without a right answer, or the
	// longest stall of a process; null for guests' loads without a client. WorstGapMS is the longest standstill in bins of
	// 100 ms.
	BlackoutMS *float64 `json:"blackout_ms"`
	WorstGapMS float64  `json:"worst_gap_ms"`
	// Warmup90MS is from the switch-over until throughput is back at 90 %; null
	// if it was not within ObservedAfterS, in s.
	Warmup90MS     *float64 `json:"warmup90_ms"`
	ObservedAfterS float64  `json:"observed_after_s"`
	BeforePerSec   float64  `json:"before_per_s"`
	// Lost are the operations missing against the rate before, and LostSeconds
	// the time in which they would have been done.
	Lost        float64 `json:"lost"`
	LostSeconds float64 `json:"lost_s"`
	Fault       *Fault  `json:"fault_latency_us"`
	// Source and Destination are what it cost the hosts.
	Source        Cost     `json:"source"`
	Destination   Cost     `json:"destination"`
	BytesReported uint64   `json:"bytes_reported"` // by the engine itself
	BadPages      uint64   `json:"bad_pages"`      // pages, and answers, that were wrong
	Notes         []string `json:"notes,omitempty"`
	ClientErrors  []string `json:"client_errors,omitempty"`
	// Status is the destination's last word, of pagewarp.
	Status *relocate.Status `json:"status,omitempty"`
	// Series is the throughput; its times are seconds from the command.
	Series []report.Point `json:"series"`
}

func newResult(o Options) *Result {
	return &Result{
		Load: o.Load, LoadText: o.Load.String(), Unit: unit(o.Load), RAMBytes: o.RAM, VCPUs: max(o.VCPUs, 1), LinkBytesPerSec: o.Link,
		Repeat: o.Repeat, Facts: map[string]Facts{}, Unavailable: []Unavailable{},
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// fill notes the engine's own account and the hosts' costs.
func (r *Row) fill(m Moved, costs [2]Cost) {
	r.Settings, r.Fault, r.BytesReported, r.Notes = m.Settings, m.Fault, m.BytesReported, m.Notes
	r.Source, r.Destination, r.Status = costs[0], costs[1], m.Status
	if !m.Stopped.IsZero() {
		r.StoppedMS = ms(m.Stopped.Sub(m.Started))
	}
	if !m.Resumed.IsZero() {
		r.DowntimeMS = ms(m.Resumed.Sub(m.Stopped))
	}
	if !m.Completed.IsZero() {
		r.TotalMS = ms(m.Completed.Sub(m.Started))
	}
}

// seriesBefore is what is kept of the time before the command.
const seriesBefore = 3 * time.Second

func (r *Row) addSeries(bins []bin) {
	for _, b := range bins {
		if b.from >= -seriesBefore && b.to > b.from {
			r.Series = append(r.Series, report.Point{T: b.from.Seconds(), V: b.n / (b.to - b.from).Seconds()})
		}
	}
}

func (r *Row) addImpact(im impact, o observation) {
	r.BeforePerSec, r.Lost, r.LostSeconds = im.perSecond, im.lost, im.lost/im.perSecond
	r.WorstGapMS, r.ObservedAfterS = ms(im.worst), im.after.Seconds()
	if im.warm != nil {
		v := ms(*im.warm)
		r.Warmup90MS = &v
	}
	if o.blackout != nil {
		v := ms(*o.blackout)
		r.BlackoutMS = &v
	}
	r.ClientErrors = o.errors
}

// Summary is the median and range of an engine's relocations that succeeded.
type Summary struct {
	Engine string `json:"engine"`
	// Good and Failed are the numbers of relocations.
	Good   int `json:"good"`
	Failed int `json:"failed"`
	// NotWarm is how many never came back to 90 % while they were observed:
	// these are not in Warmup90MS.
	NotWarm int `json:"not_warm"`
	// Incomplete is how many were on demand and had not brought all the memory while
	// they were watched: these are not in TotalMS.
	Incomplete  int           `json:"incomplete"`
	BadPages    uint64        `json:"bad_pages"`
	DowntimeMS  report.Spread `json:"downtime_ms"`
	BlackoutMS  report.Spread `json:"blackout_ms"`
	WorstGapMS  report.Spread `json:"worst_gap_ms"`
	TotalMS     report.Spread `json:"total_ms"`
	Warmup90MS  report.Spread `json:"warmup90_ms"`
	Lost        report.Spread `json:"lost"`
	LostSeconds report.Spread `json:"lost_s"`
	FaultMeanUS report.Spread `json:"fault_mean_us"`
	FaultP50US  report.Spread `json:"fault_p50_us"`
	FaultP99US  report.Spread `json:"fault_p99_us"`
	FaultP999US report.Spread `json:"fault_p999_us"`
	FaultMaxUS  report.Spread `json:"fault_max_us"`
	Faults      report.Spread `json:"faults"`
	SentMB      report.Spread `json:"sent_mb"`     // by the source, in units of 10^6 bytes
	ReturnedMB  report.Spread `json:"returned_mb"` // by the destination
	SourceCPU   report.Spread `json:"source_cpu_s"`
	DestCPU     report.Spread `json:"destination_cpu_s"`
	SourceMiB   report.Spread `json:"source_peak_mib"`
	DestMiB     report.Spread `json:"destination_peak_mib"`
}

// sumUp makes the summaries from the rows, in the engines' order.
func (r *Result) sumUp() {
	var order []string
	by := map[string][]Row{}
	for _, row := range r.Rows {
		if by[row.Engine] == nil {
			order = append(order, row.Engine)
		}
		by[row.Engine] = append(by[row.Engine], row)
	}
	r.accels()
	r.Engines = nil
	for _, name := range order {
		r.Engines = append(r.Engines, summarize(name, by[name]))
	}
}

// accels names all that the rows ran under.
func (r *Result) accels() {
	var names []string
	for _, row := range r.Rows {
		if row.Accel != "" && !slices.Contains(names, row.Accel) {
			names = append(names, row.Accel)
		}
	}
	if len(names) > 0 {
		r.Accel = strings.Join(names, " and ")
	}
}

// ErrDamaged: memory, or an answer, was wrong after a relocation by pagewarp. The
// rest of the message says by which engine.
var ErrDamaged = errors.New("memory was damaged by a relocation of pagewarp")

// Damaged is an ErrDamaged if one of pagewarp's own engines has damaged memory. What
// its peers do is in their figures only.
func (r *Result) Damaged() error {
	var says []string
	for _, s := range r.Engines {
		if base, _ := strings.CutSuffix(s.Engine, AtRoot); s.BadPages > 0 && (base == Pagewarp || base == OnDemand || base == PreTransfer) {
			says = append(says, fmt.Sprintf("%s: %d bad pages or answers", s.Engine, s.BadPages))
		}
	}
	if len(says) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrDamaged, strings.Join(says, "; "))
}

func summarize(name string, rows []Row) Summary {
	s := Summary{Engine: name}
	var good []Row
	for _, row := range rows {
		if row.Error != "" {
			s.Failed++
			continue
		}
		good = append(good, row)
		s.BadPages += row.BadPages
		if row.Warmup90MS == nil {
			s.NotWarm++
		}
		if row.TotalMS == 0 {
			s.Incomplete++
		}
	}
	s.Good = len(good)
	// A figure that a row does not have is left out.
	of := func(f func(Row) (float64, bool)) report.Spread {
		var vs []float64
		for _, row := range good {
			if v, ok := f(row); ok {
				vs = append(vs, v)
			}
		}
		return report.SpreadOf(vs)
	}
	plain := func(f func(Row) float64) report.Spread { return of(func(r Row) (float64, bool) { return f(r), true }) }
	maybe := func(f func(Row) *float64) report.Spread {
		return of(func(r Row) (float64, bool) {
			if v := f(r); v != nil {
				return *v, true
			}
			return 0, false
		})
	}
	fault := func(f func(report.Latency) float64) report.Spread {
		return of(func(r Row) (float64, bool) {
			if r.Fault == nil {
				return 0, false
			}
			v := f(r.Fault.Latency)
			return v, v > 0
		})
	}
	s.DowntimeMS = plain(func(r Row) float64 { return r.DowntimeMS })
	s.BlackoutMS = maybe(func(r Row) *float64 { return r.BlackoutMS })
	s.WorstGapMS = plain(func(r Row) float64 { return r.WorstGapMS })
	s.TotalMS = of(func(r Row) (float64, bool) { return r.TotalMS, r.TotalMS > 0 })
	s.Warmup90MS = maybe(func(r Row) *float64 { return r.Warmup90MS })
	s.Lost = plain(func(r Row) float64 { return r.Lost })
	s.LostSeconds = plain(func(r Row) float64 { return r.LostSeconds })
	s.FaultMeanUS = fault(func(l report.Latency) float64 { return l.Mean })
	s.FaultP50US = fault(func(l report.Latency) float64 { return l.P50 })
	s.FaultP99US = fault(func(l report.Latency) float64 { return l.P99 })
	s.FaultP999US = fault(func(l report.Latency) float64 { return l.P999 })
	s.FaultMaxUS = fault(func(l report.Latency) float64 { return l.Max })
	s.Faults = of(func(r Row) (float64, bool) { // none is a number, too
		if r.Fault == nil {
			return 0, false
		}
		return float64(r.Fault.Count), true
	})
	s.SentMB = plain(func(r Row) float64 { return float64(r.Source.SentBytes) / 1e6 })
	s.ReturnedMB = plain(func(r Row) float64 { return float64(r.Destination.SentBytes) / 1e6 })
	s.SourceCPU = plain(func(r Row) float64 { return r.Source.CPUSeconds })
	s.DestCPU = plain(func(r Row) float64 { return r.Destination.CPUSeconds })
	s.SourceMiB = plain(func(r Row) float64 { return float64(r.Source.PeakBytes) / (1 << 20) })
	s.DestMiB = plain(func(r Row) float64 { return float64(r.Destination.PeakBytes) / (1 << 20) })
	return s
}
