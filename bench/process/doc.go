// Package process moves a plain process between two hosts while it works on its
// memory: with CRIU's lazy pages, with our page server and fault daemon, and with
// a Go peer. It is the comparison with those that move processes, or serve the
// memory of one, and not virtual machines.
//
// The load is a [Worker]: one thread that touches or rewrites the pages of a
// [workset.Set], the test guest's, in the order of the guest's loads. All that
// is known of it comes from a [Probe]: a file that the process maps shared, in
// which it counts its operations by the millisecond and notes every stall. The
// file is the same at both hosts and never moved, so it sees the switch-over as
// the process itself does, with the same clock, whoever moved it; and the table
// of what each page must hold is in it, so that a page that was lost or is old is
// found out. The harness talks to the process by words in the same file.
//
// CRIU carries over the process as it is. The others serve memory and move no
// process: there a second Worker starts at the destination, maps the memory, and
// goes on with the work where the first stopped, once told. That costs less than
// what CRIU does; reports say so.
package process
