package report

import (
	"encoding/json"
	"fmt"
	"time"
)

// Schema is the version of report.json. It is raised when a field changes its
// meaning; new fields do not raise it.
const Schema = 1

// Report is report.json: one relocation under load, as the operator, the
// client and the guest saw it. The figures at the top level are those of the
// first leg, the live one.
type Report struct {
	Schema  int       `json:"schema"`
	Started time.Time `json:"started"`
	TookSec float64   `json:"took_s"`

	VM       string `json:"vm"`
	Accel    string `json:"accel"`
	RAMBytes int64  `json:"ram_bytes"`

	Figures

	// ClientBlackoutMS is the longest gap between two answers at the client.
	ClientBlackoutMS float64 `json:"client_blackout_ms"`
	// Warmup90MS is from the switch-over until throughput is back at 90 % of
	// what it was before; null when it never was in the time observed.
	Warmup90MS *float64 `json:"warmup90_ms"`

	Integrity Integrity `json:"integrity"`
	Floors    Floors    `json:"floors"`
	Machine   Machine   `json:"machine"`
	Versions  Versions  `json:"versions"`
	Commit    string    `json:"commit"`

	Load     Load      `json:"load"`
	Legs     []Leg     `json:"legs,omitempty"`
	Peers    []Peer    `json:"peers,omitempty"`
	Timeline *Timeline `json:"timeline,omitempty"`
}

// Figures are those of one relocation, as its destination counted them.
type Figures struct {
	// DowntimeMS is source stop to destination resume, by QMP events.
	DowntimeMS float64 `json:"downtime_ms"`
	// TotalMS is from the operator's command to the source's release.
	TotalMS float64 `json:"total_ms"`

	PagesTotal    uint64 `json:"pages_total"`
	PagesDemand   uint64 `json:"pages_demand"`
	PagesPrecache uint64 `json:"pages_precache"`
	PagesZero     uint64 `json:"pages_zero"`
	BytesGuest    uint64 `json:"bytes_guest"` // memory made resident, zero pages included
	BytesWire     uint64 `json:"bytes_wire"`
	Reconnects    uint64 `json:"reconnects"`

	FaultLatency Latency            `json:"fault_latency_us"`
	Stages       map[string]Latency `json:"stages_us"`
}

// Integrity is what was compared, and what differed.
type Integrity struct {
	PagesChecked uint64 `json:"pages_checked"` // pages of the two memory files compared bit for bit
	Mismatches   uint64 `json:"mismatches"`    // pages that differed
	GuestErrors  uint64 `json:"guest_errors"`  // pages the guest itself found bad
	GuestChecks  uint64 `json:"guest_checks"`  // pages the guest checked
	ClientErrors uint64 `json:"client_errors"` // answers with a wrong checksum at the client
}

// OK reports whether something was checked and nothing differed.
func (i Integrity) OK() bool {
	return i.PagesChecked > 0 && i.Mismatches == 0 && i.GuestErrors == 0 && i.ClientErrors == 0
}

// Floors are what the machine itself does without pagewarp, of the same run.
type Floors struct {
	// LocalFaultUS is the median of a userfaultfd fault served from local memory.
	LocalFaultUS float64 `json:"local_fault_us"`
	// RTTUS is the median of a 32 B request with a 4 KiB + header answer.
	RTTUS float64 `json:"rtt_us"`
	// StreamBytesPerSec is one socket, written from one mapped file and read
	// into another.
	StreamBytesPerSec float64 `json:"stream_bytes_per_s"`
}

// Load is the client's view.
type Load struct {
	Requests      uint64   `json:"requests"`
	Errors        uint64   `json:"errors"`
	FirstErrors   []string `json:"first_errors,omitempty"`
	BeforePerSec  float64  `json:"before_per_s"` // mean of the seconds before the switch-over
	AfterPerSec   float64  `json:"after_per_s"`  // mean of the last seconds observed
	BlackoutMS    float64  `json:"blackout_ms"`
	ObservedAfter float64  `json:"observed_after_s"` // seconds observed after the switch-over
}

// Phase is a state of the relocation and the time at which it was entered.
type Phase struct {
	Name string  `json:"name"`
	AtMS float64 `json:"at_ms"` // since the operator's command
}

// Leg is one relocation of a run that makes several.
type Leg struct {
	From   string  `json:"from"`
	To     string  `json:"to"`
	Phases []Phase `json:"phases"`
	Figures
}

// Peer is another system's, or our own, result on the same guest in the same run.
type Peer struct {
	System     string  `json:"system"`
	Run        int     `json:"run"`
	TotalMS    float64 `json:"total_ms"`
	DowntimeMS float64 `json:"downtime_ms"`
	// SlowMS is from the switch-over until the guest was back at 90 % of its throughput
	// before; if StillSlow, it never was in this time, which is all that was watched.
	SlowMS       float64 `json:"slow_ms"`
	StillSlow    bool    `json:"still_slow"`
	WorstGapMS   float64 `json:"worst_gap_ms"` // longest time with hardly any progress in the guest
	BytesWire    uint64  `json:"bytes_wire"`
	GuestErrors  uint64  `json:"guest_errors"`
	SettingsNote string  `json:"settings"`
}

// New returns a report with the facts of this machine and build filled in.
func New() *Report {
	v := BuildVersions()
	return &Report{
		Schema: Schema, Started: time.Now().UTC(), Machine: ThisMachine(), Versions: v, Commit: v.Commit,
		Figures: Figures{Stages: map[string]Latency{}},
	}
}

// Write stores v as indented JSON at path, creating the folder. The file
// appears complete or not at all.
func Write(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode report %s: %w", path, err)
	}
	return WriteFile(path, append(b, '\n'))
}
