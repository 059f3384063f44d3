// Package record makes a trace of a real relocation: a guest with a load moves on
// demand only between two hosts on this machine, whose daemon logs every fault;
// then guests of the same kind move with precache, and a simulation of the trace
// is compared with what those took.
package record
