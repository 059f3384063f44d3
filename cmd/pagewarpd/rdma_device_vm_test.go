//go:build rdmavm && kmodvm

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pagewarp/pagewarp/internal/softroce"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/kmod"
	"github.com/pagewarp/pagewarp/relocate"
)

// A machine with its memory in a file goes by READ to an object of the character device,
// and from that, paused, to another, all memory compared.
func TestRDMADeviceThereAndBack(t *testing.T) {
	sweep(t)
	m := overRDMA(t, false)
	m.begin("", "")
	byReads := func(s relocate.Status) {
		t.Helper()
		r := s.RDMA
		if s.FaultSource != relocate.FaultDevice || s.PagesRemaining != 0 {
			t.Errorf("final status: %+v", s)
		}
		if r == nil || r.Device != softroce.Device || r.ReadsCompleted == 0 || r.ReadsCompleted != r.ReadsPosted || r.Fallbacks != 0 || r.Registered == 0 {
			t.Fatalf("READs: %+v", r)
		}
		// What is not registered yet may go by TCP, but not the rest.
		if r.TCPFetches > r.ReadsCompleted {
			t.Errorf("%d fetches by TCP, %d READs", r.TCPFetches, r.ReadsCompleted)
		}
		t.Logf("downtime %.0f ms, %d pages on demand, %d by precache, faults %+v; RDMA %+v", s.DowntimeMS, s.PagesDemand, s.PagesPrecache, s.FaultLatency, *r)
	}
	byReads(move(t, m.a, m.b, "--transport", "rdma", "--fault-source", "device"))
	first := theObject(t)
	t.Run("memory", func(t *testing.T) { vmtest.CheckPattern(t, first, m.want) }) // whose mapping goes with it
	<-m.vm.Done

	byReads(move(t, m.b, m.a, "--transport", "rdma", "--fault-source", "device", "--rdma-pin", "all", "--paused", "--keep-source"))
	second := theObject(t, filepath.Base(first))
	if got := objects(t)[filepath.Base(first)]; got.State != kmod.Frozen {
		t.Errorf("the source's object, which was to be kept: %+v", got)
	}
	t.Run("both", func(t *testing.T) {
		sameMemory(t, first, second)
		vmtest.CheckPattern(t, second, m.want)
	})
	m.killIncomingOf(first)
	os.Remove(filepath.Join(m.b.dir, "vm.qmp")) // what a killed QEMU leaves
	if c := pagewarp(t, m.a, "device", "destroy", filepath.Base(first)); c.wait() != 0 {
		t.Error(c.text())
	}
	m.killIncoming()
	noObjects(t)
}
