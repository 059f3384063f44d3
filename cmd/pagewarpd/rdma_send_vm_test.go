//go:build rdmavm

package main

import (
	"path/filepath"
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate"
)

// Precache by SEND, compressed; demand by READ. In the VM of transport/rdma/rdmatest,
// as rdma_vm_test.go.
func TestRDMASend(t *testing.T) {
	m := overRDMA(t, true)
	m.begin("", "")
	kept := filepath.Join(m.a.dir, "vm.mem")
	s := move(t, m.a, m.b, "--transport", "rdma", "--codec", "zstd", "--paused", "--keep-source")
	r := s.RDMA
	if r == nil || r.Messages == 0 || r.MessageBytes == 0 || r.SendBuildMS == 0 || r.Recalled != 0 || r.Fallbacks != 0 {
		t.Fatalf("SENDs: %+v", r)
	}
	if n := (s.PagesPrecache) * 4096; r.MessageBytes > n*3/4 {
		t.Errorf("%d bytes by SEND for %d of memory: nothing was compressed", r.MessageBytes, n)
	}
	// Each answer of a precache channel came by SEND, but for those before it was up.
	if r.TCPFetches > r.Messages/4 {
		t.Errorf("%d fetches by TCP, %d answers by SEND", r.TCPFetches, r.Messages)
	}
	sameMemory(t, kept, filepath.Join(m.b.dir, "vm.mem"))
	m.once()
	pagewarp(t, m.b, "status", "web1").exits(0, "answers by SEND, ")
	t.Logf("%d pages by precache: %d answers by SEND of %d bytes, made in %.0f ms; %d READs", s.PagesPrecache, r.Messages, r.MessageBytes, r.SendBuildMS, r.ReadsCompleted)
}

// The link goes down in mid-drain: what was to come by SEND comes by TCP, each page
// once.
func TestRDMASendLinkDown(t *testing.T) {
	m := overRDMA(t, false)
	m.begin("", "")
	m.relocate(relocate.Options{Bandwidth: 2 * slow, Transport: relocate.TransportRDMA, RDMAPrecache: relocate.RDMAPrecacheSend, PrecacheChannels: 1, Codec: "none"})
	vmtest.Wait(t, "answers by SEND in the drain", func() bool {
		s := m.b.status(relocate.RoleDestination)
		return s.Phase == relocate.PhaseDraining && s.RDMA != nil && s.RDMA.MessageBytes > 8<<20
	})
	if s := m.b.status(relocate.RoleDestination); s.PagesRemaining == 0 {
		t.Fatal("the drain was over before the test began")
	}
	linkDown(t)
	vmtest.Wait(t, "RDMA to be given up", func() bool { r := m.reads(); return r.Fallbacks > 0 && r.ChannelsUp == 0 })
	pagewarp(t, m.b, "status", "web1").exits(0, "RDMA device rxe0: port error")
	n := m.reads().Messages
	m.arrived()
	m.once()
	if r := m.reads(); r.Messages != n || r.TCPFetches == 0 {
		t.Errorf("after the end of RDMA: %+v, %d answers by SEND before", r, n)
	}
}
