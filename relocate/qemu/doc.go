// Package qemu drives one unmodified QEMU process for a post-copy relocation:
// over QMP it inspects a running machine, says whether it can be relocated and
// why not, starts its counterpart on the destination, and performs the steps of
// the switch-over. It decides nothing: the order of the steps and what to do
// when one fails belong to the caller's state machine.
//
// # The steps, in their order
//
//	source                                destination
//	Connect, Inspect, CheckRelocatable
//	                                      DestinationArgv, Spawn
//	                                      PrepareDestination, Incoming
//	PrepareSource, StartMigrate
//	WaitPreSwitchover                     (guest stopped, image frozen)
//	ContinueSwitchover                    (device state flows)
//	WaitSourceCompleted                   WaitLoaded
//	                                      Resume, AnnounceSelf
//	Quit
//
// Until Resume is called, Outgoing.CancelAndResume brings the source back from
// any of the states. Once Resume may have reached the destination's QEMU, the
// source must never run again; nothing in this package checks that.
//
// # Time
//
// Every call takes a context, and every QMP command has a deadline even when
// the context has none (CommandTimeout). The times of events are QEMU's own, as
// it wrote them: a downtime computed from two hosts compares two clocks.
//
// # Bounds
//
// One command is in flight per machine; others wait for it, within their own
// deadlines. An event queue holds MaxQueuedEvents per subscriber; beyond that
// the subscription ends with ErrEventOverflow rather than skipping an event. A
// reply longer than maxReply ends the connection.
package qemu
