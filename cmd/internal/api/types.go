package api

import (
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/version"
	"github.com/pagewarp/pagewarp/relocate"
)

// Version is the API's version, the first element of every path.
const Version = "v1"

// MaxBody bounds a request's body, in bytes.
const MaxBody = 64 << 10

// Heartbeat is the silence after which an event stream sends a sign of life.
const Heartbeat = 15 * time.Second

// KindHeartbeat is the kind of the sign of life.
const KindHeartbeat = "heartbeat"

// VersionReply says who answers.
type VersionReply struct {
	API string `json:"api"`
	version.Info
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	StateDir string    `json:"state_dir"`
	Listen   []string  `json:"listen"`   // addresses for peers
	Security string    `json:"security"` // "mtls", "local" (no certificates, loopback only), "insecure"
	// FaultSource catches the faults of machines that arrive: "device",
	// "userfaultfd", or "none".
	FaultSource string `json:"fault_source,omitempty"`
	// FaultReason says why it is not the device, or why it is none.
	FaultReason string `json:"fault_reason,omitempty"`
	Warning     string `json:"warning,omitempty"` // what the operator should know, e.g. an expiring certificate
}

// The values of VersionReply.Security.
const (
	SecurityTLS      = "mtls"
	SecurityLocal    = "local"
	SecurityInsecure = "insecure"
)

// AddRequest adopts a machine that runs on this host.
type AddRequest struct {
	Name string `json:"name"`
	QMP  string `json:"qmp"` // absolute path of its QMP socket
}

// MachinesReply lists the adopted machines, by name.
type MachinesReply struct {
	VMs []relocate.Machine `json:"vms"`
}

// RelocateRequest starts a relocation. Options left out take the daemon's
// configured defaults; NoCap asks for no cap even where a default is configured.
type RelocateRequest struct {
	To    string `json:"to"`
	NoCap bool   `json:"no_cap,omitempty"`
	relocate.Options
}

// CacheReply is what the host keeps of machines that have left, what was used
// longest ago first.
type CacheReply struct {
	Dir     string                `json:"dir"`
	Limit   int64                 `json:"limit"` // bytes; 0: nothing is kept
	Entries []relocate.CacheEntry `json:"entries"`
}

// BandwidthRequest changes the cap of a running relocation.
type BandwidthRequest struct {
	BytesPerSecond int64 `json:"bytes_per_second"` // 0: no cap
}

// Limits are those of all relocations of the host together.
type Limits struct {
	// HostBandwidth caps precache to this host, and that from it, in bytes per
	// second; 0 is no cap. Configured is what the configuration says, which is in
	// force again once the daemon has read it again.
	HostBandwidth int64 `json:"host_bandwidth"`
	Configured    int64 `json:"configured"`
}

// LimitsRequest changes the limits that it names.
type LimitsRequest struct {
	HostBandwidth *int64 `json:"host_bandwidth,omitempty"` // 0: no cap
}

// StatusReply is the daemon and its relocations, oldest first.
type StatusReply struct {
	Daemon      VersionReply      `json:"daemon"`
	Relocations []relocate.Status `json:"relocations"`
}
