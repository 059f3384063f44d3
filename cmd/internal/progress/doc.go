// Package progress shows one relocation to a person or to a log.
//
// On a terminal it prints the phases as they pass and, while memory follows, a
// bar with pages by class, rate, time left and fault latency. Elsewhere it
// prints one line for each phase and one every few seconds, fit for a log.
// Either way Summary is what remains to be read at the end.
package progress
