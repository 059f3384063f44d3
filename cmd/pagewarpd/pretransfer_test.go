package main

import (
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate"
)

// Everything that can end a relocation while memory is copied and the guest still
// runs at its source: the guest must not notice, and nothing may be left.

// midCopy starts a pre-transfer and returns in the middle of it.
func midCopy(t *testing.T) *matrix {
	t.Helper()
	m := newMatrix(t, "", "")
	m.relocate(relocate.Options{PreTransfer: true, Bandwidth: slow})
	m.awaitCopy()
	return m
}

func (m *matrix) awaitCopy() {
	m.t.Helper()
	vmtest.Wait(m.t, "the source to hear of copied pages", func() bool {
		s := m.a.status(relocate.RoleSource)
		return s.Phase == relocate.PhasePreTransfer && s.PagesPreTransfer > 100
	})
}

func TestDaemonKilledInAPreTransfer(t *testing.T) {
	for _, role := range []relocate.Role{relocate.RoleSource, relocate.RoleDestination} {
		t.Run(string(role), func(t *testing.T) {
			t.Parallel()
			m := midCopy(t)
			n := m.a
			if role == relocate.RoleDestination {
				n = m.b
			}
			n.kill()
			if role == relocate.RoleDestination {
				vmtest.Wait(t, "the source to roll back", func() bool { return m.a.status(relocate.RoleSource).Phase == relocate.PhaseRolledBack })
			}
			n.start("")
			m.stayed()
			// Nothing of it is in the way of the next one.
			m.relocate(relocate.Options{PreTransfer: true})
			m.arrived()
		})
	}
}

func TestNetworkCutInAPreTransfer(t *testing.T) {
	t.Parallel()
	m := midCopy(t)
	m.proxy.Cut()
	vmtest.Wait(t, "the source to roll back", func() bool { return m.a.status(relocate.RoleSource).Phase == relocate.PhaseRolledBack })
	m.proxy.Restore()
	m.stayed()
}

func TestDestinationQEMUKilledInAPreTransfer(t *testing.T) {
	t.Parallel()
	m := midCopy(t)
	m.killIncoming()
	vmtest.Wait(t, "the source to roll back", func() bool { return m.a.status(relocate.RoleSource).Phase == relocate.PhaseRolledBack })
	m.stayed()
}

func TestInterruptInAPreTransfer(t *testing.T) {
	t.Parallel()
	m := newMatrix(t, "", "")
	c := pagewarp(t, m.a, "relocate", "web1", "--to", m.to, "--pre-transfer", "--bandwidth", "16M")
	m.awaitCopy()
	pagewarp(t, m.a, "status", "web1").exits(0, "pretransfer")
	c.says("pages copied")
	c.interrupt()
	c.exits(130, "runs on")
	m.stayed()
}
