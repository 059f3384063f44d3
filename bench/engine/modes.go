package engine

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// mode is one of QEMU's own ways to migrate.
type mode struct {
	name string
	// needs are the capabilities without which it is not this mode, and since
	// the first version that has them.
	needs []string
	since qemu.Version
	// postcopy modes switch as soon as the migration is active.
	postcopy bool
	multifd  bool
	// sameMemory has both QEMUs map one file, which only works because both hosts
	// are this machine: no page is sent, none is missing.
	sameMemory bool
}

var modes = []mode{
	{name: "qemu-precopy", needs: []string{capAutoConverge}, since: qemu.Version{Major: 2}},
	{name: "qemu-precopy-plain", since: qemu.Version{Major: 2}},
	{name: "qemu-multifd", needs: []string{capMultifd, capAutoConverge}, since: qemu.Version{Major: 5}, multifd: true},
	{name: "qemu-postcopy", needs: []string{capPostcopy}, since: qemu.Version{Major: 2, Minor: 5}, postcopy: true},
	{name: "qemu-postcopy-preempt", needs: []string{capPostcopy, capPreempt}, since: qemu.Version{Major: 7, Minor: 1}, postcopy: true},
	{name: Floor, needs: []string{capIgnoreShared}, since: qemu.Version{Major: 4}, sameMemory: true},
}

// Floor is no way to move a guest between hosts, but what any way costs its users
// on this machine: the state goes to another QEMU, which has all the memory
// already. What is lost then is lost to the stop, the loading, the network's
// finding the guest again, and the emulator's translating all of its code anew.
const Floor = "floor"

// Migration capabilities of QEMU.
const (
	capAutoConverge = "auto-converge"
	capMultifd      = "multifd"
	capPostcopy     = "postcopy-ram"
	capPreempt      = "postcopy-preempt"
	capIgnoreShared = "x-ignore-shared"
	capBlocktime    = "postcopy-blocktime"
	capEvents       = "events"
)

const (
	// beyondAnyLink is a bandwidth limit that is none; QEMU has no word for
	// none before the switch to postcopy.
	beyondAnyLink = int64(100e9)
	// slowLink is where compressing costs less time than it saves.
	slowLink = 2_500_000_000 / 8
)

// plan is what both sides of a migration are set to.
type plan struct {
	src, dst             []string // capabilities
	srcParams, dstParams map[string]any
	settings             string
}

// plan chooses the best settings of a mode, for a QEMU with the known
// capabilities, over a link of so many bytes/s (0 is no limit), on so many cores.
func (m mode) plan(known []string, link uint64, cores int) (plan, error) {
	for _, need := range m.needs {
		if !slices.Contains(known, need) {
			return plan{}, fmt.Errorf("this QEMU has no migration capability %s", need)
		}
	}
	p := plan{
		src: slices.Clone(m.needs), dst: slices.Clone(m.needs),
		srcParams: map[string]any{"max-bandwidth": beyondAnyLink}, dstParams: map[string]any{},
	}
	says := slices.Clone(m.needs)
	if slices.Contains(known, capEvents) {
		p.src, p.dst = append(p.src, capEvents), append(p.dst, capEvents)
	}
	switch {
	case m.postcopy:
		p.srcParams["max-postcopy-bandwidth"] = int64(0) // no limit
		says = append(says, "switched to postcopy at once")
		if slices.Contains(known, capBlocktime) {
			p.dst = append(p.dst, capBlocktime)
			says = append(says, capBlocktime+" at the destination, to tell the latency of faults")
		}
	case m.multifd:
		// Beyond the cores, channels only wait for each other.
		channels, compression := max(2, cores), "none"
		if link > 0 && link <= slowLink {
			compression = "zstd"
		}
		for _, params := range []map[string]any{p.srcParams, p.dstParams} {
			params["multifd-channels"], params["multifd-compression"] = channels, compression
		}
		says = append(says, fmt.Sprintf("%d channels", channels), "compression "+compression)
	}
	if !m.postcopy {
		says = append(says, "downtime limit 300 ms (QEMU's default)")
	}
	memory := "private memory"
	if m.sameMemory {
		memory = "one memory file for both, of which nothing is sent"
	}
	says = append(says, memory, "bandwidth unlimited", "no TLS", "its time includes starting the destination's QEMU")
	p.settings = strings.Join(says, ", ")
	return p, nil
}
