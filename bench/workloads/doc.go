// Package workloads describes what the test guest does while it is relocated,
// in a form that fits a flag and a report: a kind and its parameters,
//
//	churn:rate=20000,ws=512,half=0.5
//
// and turns it into the guest's configuration. The loads themselves run in the
// guest (bench/guest), which counts its operations per 100 ms, so that slow
// phases can be measured from the inside; the clients of those that serve are
// bench/load, bench/specweb and bench/workloads/resp.
package workloads
