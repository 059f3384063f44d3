// Package relocate is the switch-over: the state machine that moves a running
// machine between two hosts, and [Host], one host's set of machines in both
// roles.
//
// # States
//
// The source dials; both sides step through the same phases. The edge between
// loaded and committed is the only one that matters for safety: before it every
// failure ends in rolled-back with the machine running at the source, after it
// the source never runs the machine again.
//
//	  source                      control channel             destination
//	connecting ── OFFER ─────────────────────────────────▶ connecting
//	                                                       preparing   VMM started paused,
//	                                                                   faults caught
//	                                                       (pretransfer, see below)
//	ready      ◀─────────────────────────────── READY ──── ready
//	state      ══ STATE (guest still runs) ═══════════════▶ state
//	frozen     ── REGIONS ───────────────────────────────▶ frozen      fetches begin
//	           ══ STATE (device state), end ══════════════▶
//	loaded     ◀────────────────────────────── LOADED ──── loaded      paused, complete
//	committed  ── GO ────────────────────────────────────▶ committed   journalled, then resumed
//	draining   ◀───────────────────────────── RUNNING ──── draining
//	draining   ◀──────────────────────────── PROGRESS ──── draining
//	done       ◀───────────────────────────── DRAINED ──── done
//	           ── RELEASED ──────────────────────────────▶
//
// With Options.PreTransfer the READY says so, both sides are in pretransfer while the
// destination fetches memory of the running guest on the precache channels, and its
// PREPARED takes the place of READY. What comes then are candidates
// (docs/PROTOCOL.md section 12), the guest is not touched, and every failure is one
// of those before ready.
//
// # Failures
//
// Before committed: the source, whatever the cause (abort, lost control channel,
// deadline, Ctrl-C, its own restart), cancels QEMU's migration and resumes the
// guest. The destination ends its VMM when it is told, when the control channel
// is lost, or, in loaded, when the source has not returned within
// the deadline inDoubt: it was not told GO, so it has run nothing.
//
// After committed: the source redials for ever and both send SYNC. A
// destination that was never told GO answers rolled-back (it wrote that down
// before it ended its VMM), and only that answer, before any RUNNING, lets the source
// run again. A destination that does not know the session at all (its journal is gone) proves
// nothing, so the source stays stopped and says so.
//
// # Journals
//
// Each side writes its phase to the state directory before it acts on it: the
// source before GO, the destination before it resumes. A daemon that was killed
// reads them at start: a source before committed rolls back, after it serves
// pages again; a destination before GO ends its VMM, after it takes the
// userfaultfd from the VMM again, maps the residency file, wakes every waiter
// and goes on draining. The directory belongs on tmpfs: a journal must survive
// the daemon, and must not survive the host, whose VMMs are gone with it.
//
// # Locks
//
// Host.mu guards the maps of machines and transfers and is held for no I/O. Each
// transfer has a mutex for its status; it is a leaf.
package relocate
