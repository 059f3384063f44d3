// Package faultd is the destination engine: it catches the faults of a machine
// whose memory is still elsewhere, fetches the pages, installs them, and brings
// the rest over in the background, until nothing of it is needed any more.
//
// An [Engine] is made of parts that it knows by narrow interfaces: a
// [FaultSource] and an [Installer], with a [Placer] where pages can be written
// in place ([Shared] and [Private] are those of userfaultfd; the character
// device is another), and an [Opener] of channels ([transport.Fetcher]).
//
// The package's example is a whole session: a page server, channels over TLS, a process
// with a userfaultfd, and an engine.
//
// # For the least latency
//
// The zero values of [Config] are safe, and not the fastest. pagewarp's daemon calls
// [Tune] once, opens its channels with BlockingIO of transport/tcp's Tuning, and sets
// [Config.BlockingDemand], Priority, BulkNice (to [BulkNice]) and DemandPace (to
// [DefaultDemandPace]); at the source Demand, for demand channels, and Nice, for the
// others, of pageserver's Options. Priorities need CAP_SYS_NICE; what is refused is
// logged, and slower.
//
// # Threads
//
// Fault readers ([Config.Readers]) sleep in the fault source, each locked to a
// thread. A reader that finds pages to fetch pushes them to the fault queue and,
// unless another thread is at it, becomes the sender: it drains the queue and
// writes one batch of fetches to the demand channel with the fewest under way
// (flat combining: Hendler, Incze, Shavit and Tzafrir, SPAA 2010). So no thread
// is woken between a fault and its fetch. One goroutine per demand channel
// receives, installs and thereby wakes the vCPU. One worker per precache channel
// posts ranges, as far as the gate, the window and the cap admit, and receives
// them.
//
// The sender's place is a lock that is only ever tried. Who pushes and fails to
// get it relies on its holder, who looks at the queue again after having let it
// go: either the holder sees the push, or the pusher's attempt came after the
// release and succeeded.
//
// # The gate
//
// While a demand fetch is under way no precache fetch is posted, except one per
// [Config.GateHold] and channel: under faults without end precache slows down,
// but goes on, or the machine would never be whole. Nobody wakes a precache
// worker when the gate opens, as that would cost the fault path a system call:
// a worker with something in flight looks again when it is answered, one without
// looks after 200 µs.
//
// # The pace
//
// Where CPUs are short the sends of demand fetches are spaced, see pacer and
// [Config.DemandPace]. Whoever finds that the next send is not due arms a timer,
// leaves the faults in the queue and lets the sender's place go; a precache worker
// that has taken an answer in looks whether the send is due by then, and the timer is
// for where none does. So the rule of the sender's place holds with these as the ones
// who look again.
//
// # No thread sleeps for ever
//
// A thread that faults is queued in the kernel until a wake-up of its page
// (CONTINUE, COPY, ZEROPAGE and WAKE all wake those that are queued at that time,
// whether their message has been read or not; man 2 ioctl_userfaultfd). A reader
// that gets its message at time t reads the page's state at s > t, and then:
//
//   - Installing: does nothing. Every transition out of Installing is followed
//     by a wake-up of the page (rule W): Commit, then CONTINUE in shared memory;
//     COPY without waking, Commit, then WAKE in private memory; Release, then
//     WAKE, when an installer gives up. The claim was held at s, so its end and
//     the wake-up come after s, when the thread was queued.
//   - Resident: CONTINUE (which wakes, and wakes also if the page is mapped
//     already), or in private memory ZEROPAGE, as for a page that is Zero: a
//     Resident page there can fault only if it was given back.
//   - Zero: ZEROPAGE, or CONTINUE if the page exists, with a wake-up.
//   - Absent: looks for a demand fetch that covers the page, later than s, and
//     finds one or makes one. Its end finds the page Resident (woken after the
//     transition, which came after s, by rule W), Installing (will be woken),
//     Zero (shows a zero page), or Absent (is fetched again). The fetch leaves
//     the table only after that, so whoever found it there had its page queued
//     before the wake-up. If fetches cover groups of pages, the group of a fetch
//     on which others relied is woken once more after it has left the table:
//     a thread whose page was not part of the range faults again. Where there are
//     as many fetches as may be, the fault waits for the end of one, and then starts
//     over; its reader does not wait, as what the end of a fetch waits for may be an
//     event that is not read yet.
//
// The release comes after all of that: [Shared.Release] unregisters and then
// wakes once more, because the kernel's own wake-up at UFFDIO_UNREGISTER comes
// before the mapping's flags are cleared, and a fault can slip in between.
//
// A thread woken without its page being there faults again and starts over. A
// fault that a dead daemon had read is in the kernel's queue still: Start wakes
// everything once, after its readers run.
//
// # Commit order and crashes
//
// In shared memory the content outlives the daemon, so Commit precedes CONTINUE:
// a page found Resident after a crash is complete and only has to be shown; one
// found Installing was never visible and is fetched again. What was written of
// it is discarded first (scrub), so that a page that turns out to be zero is. So is
// what [Engine.Reserve] allocated; a reserved page is absent until it is claimed, and
// holds zeroes unless a claim's store was begun, which its abort discards. In
// private memory COPY is atomic, and answers EEXIST the second time.
//
// # Channels
//
// A channel that fails is closed and opened again by [Config.Open]; its demand
// fetches go back into the queue and out on another, its precache ranges back to
// the planner. Claims are taken when an answer arrives, so nothing is installed
// twice; those of reserved pages that a device writes to by itself ([transport.LendSink])
// when they are asked for, and are given up, and the pages emptied, once it writes no
// more. While no demand channel is up, faulting threads wait and all others run.
// Answers of a [transport.Poller] may be taken in by the fault reader that asked;
// so nothing that a page in demand goes through waits for a changing layout.
//
// # Locks
//
// Engine.sendMu before outstanding.mu; demandChannel.looking before whatever an
// answer takes, never under sendMu; crowd.mu before failMu; channel.mu, Engine.failMu and
// Engine.removesMu are leaves. None is held during a system call, except sendMu
// by the sender, and Engine.showing, which is only ever shared until the release.
package faultd
