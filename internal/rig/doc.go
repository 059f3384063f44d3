// Package rig builds hosts on one machine, for tests and the demo: every host
// is a network namespace with an uplink to a common switch, and VMs run in it
// the way an operator would start them.
//
//	               switch (namespace, bridge br0)
//	      p-a  /          | p-b           \ p-client
//	a: up0 ── br0 ── tap0    b: up0 ── br0 ── tap0    client: up0 ── br0
//
// Addresses are 10.77.0.1, .2, ... /24 in the order of the hosts, on their br0;
// VMs take theirs from 10.77.0.100 on. Everything a rig makes carries the
// rig's identity, in which the process that made it is named, so that nothing
// outlives it: Close removes all of it, and a later New removes what a dead
// process left behind. It needs root and the tools ip, nsenter and
// qemu-system-x86_64.
package rig
