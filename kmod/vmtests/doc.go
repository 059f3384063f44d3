// Package vmtests holds the tests of the character device that need the module:
// package kmodtest runs them inside a virtual machine. They are built with the
// tag kmodvm.
package vmtests
