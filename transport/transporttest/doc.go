// Package transporttest is the suite that every transport passes, and the fakes
// for testing against one: an [Image] to serve, a [Sink] to receive into, and
// [Faults] to break the connection between.
package transporttest
