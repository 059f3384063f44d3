package progress

import (
	"fmt"
	"io"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/pagewarp/pagewarp/cmd/internal/units"
	"github.com/pagewarp/pagewarp/relocate"
)

// Display shows a relocation. It is used by one goroutine.
type Display interface {
	// Phase reports a phase at the time t after the start.
	Phase(p relocate.Phase, t time.Duration, text string)
	// Update shows how far it has come.
	Update(relocate.Status)
	// Note prints a line of the command's own.
	Note(format string, a ...any)
	// Close ends the display; nothing may follow.
	Close()
}

// what says in words what a phase does.
var what = map[relocate.Phase]string{
	relocate.PhaseConnecting:  "asking the destination",
	relocate.PhasePreparing:   "the destination starts its VMM",
	relocate.PhasePreTransfer: "memory is copied, the guest runs on",
	relocate.PhaseReady:       "the destination waits for the machine",
	relocate.PhaseState:       "device state goes, the guest still runs",
	relocate.PhaseFrozen:      "the guest has stopped",
	relocate.PhaseLoaded:      "the destination has the device state",
	relocate.PhaseCommitted:   "switched over: the source has given up the guest",
	relocate.PhaseDraining:    "the guest runs at the destination, memory follows",
	relocate.PhaseDone:        "every page has arrived, the source is released",
	relocate.PhaseRolledBack:  "rolled back: the machine runs on at the source",
	relocate.PhaseLost:        "the machine is lost",
}

func line(p relocate.Phase, t time.Duration, text string) string {
	if text == "" || text == string(p) {
		text = what[p]
	}
	return fmt.Sprintf("%8.3fs  %-11s  %s\n", t.Seconds(), p, text)
}

// Terminal shows progress on a terminal.
type Terminal struct {
	w     io.Writer
	p     *mpb.Progress
	bar   *mpb.Bar        // nil until memory moves
	early bool            // the bar is the pre-transfer's
	last  relocate.Status // written before each redraw by the same goroutine
	text  chan string     // the bar's right side, newest only
	cur   string          // what the drawing goroutine shows; its own
}

// NewTerminal draws on w, which must be a terminal.
func NewTerminal(w io.Writer) *Terminal {
	return &Terminal{w: w, p: mpb.New(mpb.WithOutput(w), mpb.WithRefreshRate(100*time.Millisecond)), text: make(chan string, 1)}
}

// Phase implements Display.
func (t *Terminal) Phase(p relocate.Phase, at time.Duration, text string) { t.write(line(p, at, text)) }

// Note implements Display.
func (t *Terminal) Note(format string, a ...any) { t.write(fmt.Sprintf(format, a...) + "\n") }

func (t *Terminal) write(s string) {
	if t.bar == nil {
		io.WriteString(t.w, s) // a terminal that has gone is no reason to stop
		return
	}
	t.p.Write([]byte(s)) // above the bar
}

// Update implements Display.
func (t *Terminal) Update(s relocate.Status) {
	t.last = s
	early := s.Phase == relocate.PhasePreTransfer
	if t.early && !early && t.bar != nil { // the bar of the pre-transfer has done its duty
		t.bar.Abort(true)
		t.bar.Wait()
		t.bar = nil
	}
	if s.PagesTotal == 0 || s.Phase != relocate.PhaseDraining && !early && t.bar == nil {
		return
	}
	t.early = early
	select {
	case <-t.text:
	default:
	}
	t.text <- detail(s)
	if t.bar == nil {
		t.bar = t.p.New(int64(s.PagesTotal), mpb.BarStyle().Lbound("[").Rbound("]"),
			mpb.PrependDecorators(decor.Name("  "+s.VM+" "), decor.Percentage()),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
				select {
				case t.cur = <-t.text:
				default:
				}
				return " " + t.cur
			})))
	}
	// Not to the last page: a full bar would complete before the source has let
	// go. Close completes it.
	t.bar.SetCurrent(min(int64(here(s)), int64(s.PagesTotal)-1))
}

// Close implements Display.
func (t *Terminal) Close() {
	if t.bar != nil {
		if t.last.Phase == relocate.PhaseDone {
			t.bar.SetCurrent(int64(t.last.PagesTotal))
			t.bar.SetTotal(int64(t.last.PagesTotal), true)
		} else {
			t.bar.Abort(false)
		}
	}
	t.p.Wait()
}

// Log shows progress as lines, at most one for each interval besides phases.
type Log struct {
	w        io.Writer
	interval time.Duration
	now      func() time.Time
	next     time.Time
}

// NewLog writes to w.
func NewLog(w io.Writer, interval time.Duration) *Log {
	return &Log{w: w, interval: interval, now: time.Now}
}

// Phase implements Display.
func (l *Log) Phase(p relocate.Phase, at time.Duration, text string) {
	io.WriteString(l.w, line(p, at, text)) // a log that is gone is no reason to stop
}

// Note implements Display.
func (l *Log) Note(format string, a ...any) {
	fmt.Fprintf(l.w, format+"\n", a...) // as above
}

// Update implements Display.
func (l *Log) Update(s relocate.Status) {
	moves := s.Phase == relocate.PhaseDraining || s.Phase == relocate.PhasePreTransfer
	if n := l.now(); moves && s.PagesTotal > 0 && !n.Before(l.next) {
		l.next = n.Add(l.interval)
		fmt.Fprintf(l.w, "%8.3fs  %-11s  %s of %s pages (%.0f %%), %s\n", n.Sub(s.Started).Seconds(), s.Phase,
			count(here(s)), count(s.PagesTotal), Percent(s), detail(s)) // as above
	}
}

// Close implements Display.
func (l *Log) Close() {}

// here is how many pages have arrived or, during a pre-transfer, were looked at by
// its present pass.
func here(s relocate.Status) uint64 {
	if s.Phase == relocate.PhasePreTransfer {
		return min(s.PreTransferSeen, s.PagesTotal)
	}
	return s.PagesTotal - min(s.PagesRemaining, s.PagesTotal)
}

// Percent is how much of the memory has arrived, or been looked at.
func Percent(s relocate.Status) float64 {
	if s.PagesTotal == 0 {
		return 0
	}
	return 100 * float64(here(s)) / float64(s.PagesTotal)
}

func detail(s relocate.Status) string {
	if s.Phase == relocate.PhasePreTransfer {
		return fmt.Sprintf("pass %d, %s pages copied, %s, %s/s", s.PreTransferPass, count(s.PagesPreTransfer), units.FormatSize(s.BytesPreTransfer),
			units.FormatSize(uint64(max(s.RateBytes, 0))))
	}
	out := fmt.Sprintf("demand %s, precache %s, %s/s", count(s.PagesDemand), count(s.PagesPrecache), units.FormatSize(uint64(max(s.RateBytes, 0))))
	if s.ETASec > 0 {
		out += ", " + Seconds(s.ETASec) + " left"
	}
	if f := s.FaultLatency; f.Count > 0 {
		out += fmt.Sprintf(", fault p50 %s p99 %s", Micros(f.P50), Micros(f.P99))
	}
	if !s.Connected {
		out += ", NOT CONNECTED, retrying"
	}
	return out
}

// Seconds writes a number of seconds for people.
func Seconds(s float64) string {
	switch {
	case s < 1:
		return fmt.Sprintf("%.0f ms", s*1e3)
	case s < 10:
		return fmt.Sprintf("%.1f s", s)
	case s < 120:
		return fmt.Sprintf("%.0f s", s)
	}
	return time.Duration(s * 1e9).Round(time.Second).String()
}

// Micros writes a number of microseconds for people.
func Micros(us float64) string {
	switch {
	case us < 1000:
		return fmt.Sprintf("%.0f µs", us)
	case us < 1e6:
		return fmt.Sprintf("%.1f ms", us/1e3)
	}
	return fmt.Sprintf("%.2f s", us/1e6)
}

// count writes a number with thousands apart.
func count(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}
