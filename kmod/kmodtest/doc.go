// Package kmodtest tests the character device: its test boots a virtual machine
// with the module and runs package vmtests and the conformance suite of faultd in
// it. [Ring] is a fault ring without a kernel, for tests of its consumer.
package kmodtest
