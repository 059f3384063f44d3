package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate"
)

// TestSilentQEMUAfterGo: a QEMU that takes longer to resume than a command may (its disks are
// slow to open, or it waits for a page of a source that is out of reach) has the only guest
// there is. It is waited for, over a restart of the daemon too.
func TestSilentQEMUAfterGo(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			t.Parallel()
			m := hold(t, relocate.RoleDestination, relocate.PhaseCommitted, func(m *matrix) { m.signal(syscall.SIGSTOP) })
			silent := func() bool {
				s := m.b.status(relocate.RoleDestination)
				if s.Phase.Final() {
					t.Fatalf("the destination gave its guest up: %s", s.Error)
				}
				return strings.Contains(s.Error, "has not said that the guest runs")
			}
			vmtest.Wait(t, "the destination to miss QEMU's answer", silent)
			if restart {
				m.b.kill()
				m.b.start("")
				vmtest.Wait(t, "its successor to miss it", silent)
			}
			m.signal(syscall.SIGCONT)
			m.arrived()
		})
	}
}

// signal sends a signal to the QEMUs at the destination.
func (m *matrix) signal(s syscall.Signal) {
	for pid := range m.vmms() {
		if err := syscall.Kill(pid, s); err != nil {
			m.t.Fatal(err)
		}
	}
}
