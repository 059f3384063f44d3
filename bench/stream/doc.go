// Package stream measures precache: how fast a whole image goes through the
// engine, against the stream floor of the same run, and over a link of limited
// bandwidth. The processes are those of bench/fault.
package stream
