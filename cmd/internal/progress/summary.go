package progress

import (
	"fmt"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/units"
	"github.com/pagewarp/pagewarp/relocate"
)

// Summary describes an ended relocation in a few lines.
func Summary(s relocate.Status) string {
	var b strings.Builder
	row := func(name, format string, a ...any) {
		fmt.Fprintf(&b, "  %-9s %s\n", name, fmt.Sprintf(format, a...))
	}
	switch s.Phase {
	case relocate.PhaseDone:
		place := "at " + s.Peer
		if s.Role == relocate.RoleDestination {
			place = "here, from " + s.Peer
		}
		if s.Options.Paused {
			fmt.Fprintf(&b, "%s is %s, paused\n", s.VM, place)
		} else {
			fmt.Fprintf(&b, "%s runs %s\n", s.VM, place)
		}
	case relocate.PhaseRolledBack:
		fmt.Fprintf(&b, "%s was rolled back and runs on at the source\n", s.VM)
	case relocate.PhaseLost:
		fmt.Fprintf(&b, "%s is lost\n", s.VM)
	default:
		fmt.Fprintf(&b, "%s is %s\n", s.VM, s.Phase)
	}
	// The headline has said what the sentinel in front says.
	if reason := strings.TrimPrefix(s.Error, relocate.ErrRolledBack.Error()+": "); reason != "" {
		row("reason", "%s", reason)
	}
	if s.DowntimeMS > 0 {
		row("downtime", "%.1f ms%s", s.DowntimeMS, parts(s.DowntimeParts))
	}
	if end := s.Ended; !end.IsZero() {
		row("total", "%s", Seconds(end.Sub(s.Started).Seconds()))
	}
	if s.PagesTotal > 0 {
		row("pages", "%s: %s on demand, %s by precache, %s zero", count(s.PagesTotal), count(s.PagesDemand), count(s.PagesPrecache), count(s.PagesZero))
	}
	if s.PreTransferMS > 0 {
		row("before", "%s pages copied in %s while the guest ran on, %s", count(s.PagesPreTransfer), Seconds(s.PreTransferMS/1e3), units.FormatSize(s.BytesPreTransfer))
	}
	if s.PagesCandidate > 0 {
		row("warm", "%s of %s pages that were there are the same, %s had moved, %s not sent", count(s.PagesSame), count(s.PagesCandidate), count(s.PagesMoved), units.FormatSize(s.BytesSaved))
	}
	if s.WarmProblem != "" {
		row("warm", "%s", s.WarmProblem)
	}
	if by := policies(s.Policies); by != "" {
		row("precache", "%s pages asked for", by)
	}
	if s.BytesWire > 0 {
		row("wire", "%s for %s of guest memory (ratio %.2f)", units.FormatSize(s.BytesWire), units.FormatSize(s.BytesGuest), float64(s.BytesGuest)/float64(s.BytesWire))
	}
	if r := s.RDMA; r != nil {
		row("rdma", "%s port %d: %s READs, %s, %s pages in place; %s retried, %s fetches by TCP", r.Device, r.Port, count(r.ReadsCompleted), units.FormatSize(r.ReadBytes), count(r.PagesInPlace), count(r.ReadsRetried), count(r.TCPFetches))
		if r.Messages > 0 {
			made := ""
			if r.SendBuildMS > 0 {
				made = ", made in " + Seconds(r.SendBuildMS/1e3)
			}
			row("", "%s answers by SEND, %s%s", count(r.Messages), units.FormatSize(r.MessageBytes), made)
		}
		if !s.Phase.Final() {
			row("", "%d channels up, %s registered here", r.ChannelsUp, units.FormatSize(r.Registered))
		}
		if r.Fallbacks > 0 {
			row("", "%d times a channel lost RDMA, last because of %s", r.Fallbacks, r.LastFallback)
		}
	}
	if drain := s.Drained.Sub(s.Resumed); !s.Drained.IsZero() && !s.Resumed.IsZero() && drain > 0 {
		row("drain", "%s, %s on average", Seconds(drain.Seconds()), units.FormatBits(float64(s.BytesGuest)/drain.Seconds()))
	}
	if f := s.FaultLatency; f.Count > 0 {
		by := ""
		if s.FaultSource != "" {
			by = ", caught by " + s.FaultSource
		}
		row("faults", "p50 %s, p99 %s, max %s (%s)%s", Micros(f.P50), Micros(f.P99), Micros(f.Max), count(uint64(f.Count)), by)
	}
	if s.Reconnects > 0 {
		how := "each taken up again"
		if !s.Phase.Final() && !s.Connected {
			how = "the last one goes on"
		}
		row("cuts", "%d, %s", s.Reconnects, how)
	}
	return b.String()
}

// policies says how many pages each precache policy has asked for, without those
// that had none.
func policies(all []relocate.PolicyCount) string {
	var out []string
	for _, p := range all {
		if p.Pages > 0 {
			out = append(out, p.Name+" "+count(p.Pages))
		}
	}
	return strings.Join(out, ", ")
}

// parts says where the downtime went, in the order of time.
func parts(ms map[string]float64) string {
	if len(ms) == 0 {
		return ""
	}
	var out []string
	for _, name := range []string{"freeze", "save", "load", "commit", "resume"} {
		out = append(out, fmt.Sprintf("%s %.1f", name, ms[name]))
	}
	return " (" + strings.Join(out, ", ") + ")"
}

// Age writes how long ago t was, "-" for never.
func Age(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return now.Sub(t).Round(time.Second).String()
}
