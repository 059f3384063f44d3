package relocate

import (
	"errors"
	"time"
)

// Errors that callers branch on. Each names its consequence.
var (
	// ErrUnknownMachine: no machine of that name is adopted; nothing was done.
	ErrUnknownMachine = errors.New("unknown machine")
	// ErrExists: the name is taken; choose another or forget the first.
	ErrExists = errors.New("machine exists")
	// ErrBusy: the machine is being relocated; wait or cancel.
	ErrBusy = errors.New("machine is being relocated")
	// ErrIdle: the machine is not being relocated; nothing was done.
	ErrIdle = errors.New("machine is not being relocated")
	// ErrTooLate: the switch-over has happened; it cannot be rolled back.
	ErrTooLate = errors.New("past the switch-over")
	// ErrRolledBack: the relocation failed or was cancelled before the
	// switch-over; the machine runs on at the source.
	ErrRolledBack = errors.New("rolled back, the machine runs on at the source")
	// ErrLost: the machine died after the switch-over.
	ErrLost = errors.New("machine lost")
)

// Role is the part a host plays in one relocation.
type Role string

// The roles.
const (
	RoleSource      Role = "source"
	RoleDestination Role = "destination"
)

// Phase is a state of the relocation's state machine (doc.go has the diagram).
type Phase string

// Phases in their order. Up to Loaded a failure rolls back; from Committed on
// the source never runs again.
const (
	PhaseConnecting Phase = "connecting" // source: dialling, offering; destination: checking the offer
	PhasePreparing  Phase = "preparing"  // the destination starts its VMM and catches faults
	// PhasePreTransfer: memory is copied while the guest runs at the source, if that
	// was asked for.
	PhasePreTransfer Phase = "pretransfer"
	PhaseReady       Phase = "ready"     // the device state may come
	PhaseState       Phase = "state"     // small RAM blocks go while the guest still runs
	PhaseFrozen      Phase = "frozen"    // the guest has stopped, the image is frozen
	PhaseLoaded      Phase = "loaded"    // the destination has the device state, paused
	PhaseCommitted   Phase = "committed" // the source has given up the guest
	PhaseDraining    Phase = "draining"  // the guest runs at the destination, memory follows
	PhaseDone        Phase = "done"      // every page is resident, the source has let go
	PhaseRolledBack  Phase = "rolled-back"
	PhaseLost        Phase = "lost"
)

// Final reports whether nothing more will happen.
func (p Phase) Final() bool {
	return p == PhaseDone || p == PhaseRolledBack || p == PhaseLost
}

// Ways to catch the faults of a machine that arrives; see HostConfig.FaultSource.
const (
	FaultAuto        = "auto"        // the device where it is there, else userfaultfd
	FaultDevice      = "device"      // the character device of the pagewarp module
	FaultUserfaultfd = "userfaultfd" // taken from QEMU
)

// FaultSources are the names that can be asked for.
var FaultSources = []string{FaultAuto, FaultDevice, FaultUserfaultfd}

// Options of one relocation, chosen by the operator.
type Options struct {
	// Paused leaves the machine paused at the destination. A machine that was
	// paused at the source stays paused in any case.
	Paused bool `json:"paused,omitempty"`
	// OnDemandOnly switches precache off: pages come only when touched, until a cap is
	// set in the drain (Host.SetBandwidth).
	OnDemandOnly bool `json:"on_demand_only,omitempty"`
	// Precache names the precache policies, separated by commas
	// (pagecache.PolicyNames); empty is pagecache.DefaultPolicyNames.
	Precache string `json:"precache,omitempty"`
	// Bandwidth caps precache, in bytes per second on the wire; 0 is no cap.
	Bandwidth int64 `json:"bandwidth,omitempty"`
	// Codec is the precache codec policy: "auto", "none", "s2", "zstd".
	Codec string `json:"codec,omitempty"`
	// DemandChannels and PrecacheChannels are connections; 0 is the default.
	DemandChannels   int `json:"demand_channels,omitempty"`
	PrecacheChannels int `json:"precache_channels,omitempty"`
	// FaultSource says how the destination catches the faults: "auto", "device",
	// "userfaultfd", or "" for what the destination's configuration says.
	FaultSource string `json:"fault_source,omitempty"`
	// Transport is how pages travel, one of Transports; empty is TransportTCP.
	Transport string `json:"transport,omitempty"`
	// RDMAPin says when the source registers its image: "lazy" (the default), when
	// it is wanted, "all", at the freeze, or "odp", as it is wanted and never pinned.
	RDMAPin string `json:"rdma_pin,omitempty"`
	// RDMAPrecache says how precache comes where Transport is RDMA, one of RDMAPrecaches;
	// empty is by READ, or by SEND where Codec is "s2" or "zstd".
	RDMAPrecache string `json:"rdma_precache,omitempty"`
	// RDMALost says what a channel does that loses RDMA: "tcp" (the default), it goes
	// on by TCP; "wait", it is closed and dialled until there is RDMA again.
	RDMALost string `json:"rdma_lost,omitempty"`
	// RDMALand says where READs put pages at the destination, one of RDMALands; empty is
	// RDMALandAuto.
	RDMALand string `json:"rdma_land,omitempty"`
	// Warm names what the destination may have of the image: a machine in its
	// cache, or a file there. Empty: what it has kept of the machine itself.
	Warm string `json:"warm,omitempty"`
	// PreTransfer copies the memory while the guest still runs at the source, with
	// low priority. What is written after that is sent again after the switch-over.
	PreTransfer bool `json:"pre_transfer,omitempty"`
	// PreTransferTimeoutMS ends the copying, in milliseconds; 0 is
	// DefaultPreTransferTimeout.
	PreTransferTimeoutMS int64 `json:"pre_transfer_timeout_ms,omitempty"`
	// DropWarm frees the memory at the source even where the daemon keeps it.
	DropWarm bool `json:"drop_warm,omitempty"`
	// KeepSource leaves the stopped source VMM and its memory file in place
	// after the drain instead of ending it (for comparison and forensics).
	KeepSource bool `json:"keep_source,omitempty"`
}

// Machine is an adopted virtual machine as the operator sees it.
type Machine struct {
	Name     string `json:"name"`
	QMP      string `json:"qmp"`
	PID      int    `json:"pid"`
	Status   string `json:"status"` // the VMM's run state, or "gone"
	RAMBytes int64  `json:"ram_bytes"`
	VCPUs    int    `json:"vcpus"`
	Version  string `json:"version"` // of the VMM
	Machine  string `json:"machine"` // machine type
	Phase    Phase  `json:"phase,omitempty"`
	// Problem is why the machine cannot be relocated as it is, with what to do about
	// it, as it was when it was adopted; empty if it can.
	Problem string `json:"problem,omitempty"`
}

// Latency summarises a histogram; all but Count in microseconds.
type Latency struct {
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Max   float64 `json:"max"`
	Count int64   `json:"count"`
}

// PolicyCount is what one precache policy has asked for.
type PolicyCount struct {
	Name  string `json:"name"`
	Runs  uint64 `json:"runs"`
	Pages uint64 `json:"pages"`
	Late  uint64 `json:"late"` // faults on a page that was on its way for this policy
	Used  uint64 `json:"used"` // pages that a walk has passed without a fault; of "around" only
}

// Status is one relocation as either side sees it.
type Status struct {
	VM      string  `json:"vm"`
	Role    Role    `json:"role"`
	Session string  `json:"session"` // first 8 hex digits of the token's hash
	Peer    string  `json:"peer"`
	Phase   Phase   `json:"phase"`
	Error   string  `json:"error,omitempty"`
	Options Options `json:"options"`

	Started time.Time `json:"started"`
	Stopped time.Time `json:"stopped,omitzero"` // guest stopped at the source, VMM's clock
	Resumed time.Time `json:"resumed,omitzero"` // guest resumed at the destination, VMM's clock
	Drained time.Time `json:"drained,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
	// DowntimeMS is Resumed - Stopped; it compares two hosts' clocks, which
	// must be synchronised for it to mean anything across hosts.
	DowntimeMS float64 `json:"downtime_ms,omitempty"`
	// DowntimeParts says where the downtime went, in milliseconds, at the
	// source: freeze (until QEMU said that the image is frozen), save (until its
	// device state was on the way), load (until the destination had loaded it),
	// commit (until GO was sent), resume (until the guest ran).
	DowntimeParts map[string]float64 `json:"downtime_parts_ms,omitempty"`

	PagesTotal     uint64 `json:"pages_total"`
	PagesDemand    uint64 `json:"pages_demand"`
	PagesPrecache  uint64 `json:"pages_precache"`
	PagesZero      uint64 `json:"pages_zero"`
	PagesRemaining uint64 `json:"pages_remaining"`
	// PagesReserved had memory at the destination before the guest stopped.
	PagesReserved uint64 `json:"pages_reserved,omitempty"`
	// DemandPaced are sends of demand fetches that waited because the destination is short
	// of CPU (engine.demand_pace).
	DemandPaced uint64 `json:"demand_paced,omitempty"`
	// PagesSame are those of the above that the destination had already, PagesMoved
	// those that it had at other pages, where they were before the guest moved them;
	// PagesCandidate those that it thought to have; BytesSaved did not travel.
	PagesSame      uint64 `json:"pages_same"`
	PagesMoved     uint64 `json:"pages_moved,omitempty"`
	PagesCandidate uint64 `json:"pages_candidate"`
	BytesSaved     uint64 `json:"bytes_saved"`
	// WarmProblem is why the destination did not use, or only in part, what it has of the
	// memory or was to be copied before.
	WarmProblem string `json:"warm_problem,omitempty"`
	// PagesPreTransfer were copied before the switch-over, pages that were copied
	// again included, in PreTransferMS; BytesPreTransfer is what that took on the
	// wire, the index included, on top of BytesWire.
	PagesPreTransfer uint64  `json:"pages_pre_transfer,omitempty"`
	BytesPreTransfer uint64  `json:"bytes_pre_transfer,omitempty"`
	PreTransferMS    float64 `json:"pre_transfer_ms,omitempty"`
	// PreTransferPass is the pass over the memory, from 1 on, PreTransferSeen the
	// pages that this pass has looked at.
	PreTransferPass int    `json:"pre_transfer_pass,omitempty"`
	PreTransferSeen uint64 `json:"pre_transfer_seen,omitempty"`
	BytesGuest      uint64 `json:"bytes_guest"` // memory made resident, zero pages included
	BytesWire       uint64 `json:"bytes_wire"`
	// RateBytes is guest bytes made resident per second, of the last second.
	RateBytes float64 `json:"rate_bytes"`
	ETASec    float64 `json:"eta_s,omitempty"`

	// FaultSource is what catches the faults: "device" or "userfaultfd"; empty
	// while the destination has not chosen.
	FaultSource string `json:"fault_source,omitempty"`

	// RDMA is what RDMA does in it; nil where pages go by TCP alone.
	RDMA *RDMAStatus `json:"rdma,omitempty"`

	ChannelsUp    int `json:"channels_up"`
	ChannelsTotal int `json:"channels_total"`
	// ChannelReopens counts page channels that were lost and came back.
	ChannelReopens uint64 `json:"channel_reopens"`
	Connected      bool   `json:"connected"` // the control channel
	// Reconnects counts the times that the control channel was lost.
	Reconnects uint64 `json:"reconnects"`

	// Policies says what each precache policy has asked for, HotPages how many
	// pages the source's hot lists had.
	Policies []PolicyCount `json:"policies,omitempty"`
	HotPages uint64        `json:"hot_pages,omitempty"`

	FaultLatency Latency            `json:"fault_latency_us"`
	Stages       map[string]Latency `json:"stages_us,omitempty"`
}

// Event is one line of the daemon's history.
type Event struct {
	Seq     uint64    `json:"seq"`
	Time    time.Time `json:"time"`
	VM      string    `json:"vm,omitempty"`
	Session string    `json:"session,omitempty"`
	Kind    string    `json:"kind"` // "phase", "machine", "warning", "channel", "memory", "warm", "pretransfer", "hot"
	Phase   Phase     `json:"phase,omitempty"`
	Text    string    `json:"text"`
}
