// Package faultdtest is the conformance suite of guest memory: whatever
// implements [faultd.FaultSource] and [faultd.Installer] (and [faultd.Placer]
// where it can) passes [Run], with a faulting process of its own.
package faultdtest
