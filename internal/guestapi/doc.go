// Package guestapi is the contract between the test guest (bench/guest) and
// whoever boots it or puts load on it: the kernel parameters, the lines it
// prints on its console, and the shapes of its HTTP answers. It imports
// nothing of this module, so that the guest's init stays small.
package guestapi
