package relocate

import (
	"net"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
)

// The host answers and its daemon does not.
func TestSilentDestination(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // the kernel takes connections; nobody reads from them
	a := startHost(t, vmtest.Dir(t), "a", nil)
	a.adopt(t, "web1", vmtest.Start(t, a.dir).QMP)
	if _, err := a.Relocate(t.Context(), "web1", l.Addr().String(), Options{}); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseRolledBack)
	if s := a.last(t, RoleSource); !strings.Contains(s.Error, "is it pagewarpd that listens there, and does it hang?") {
		t.Error(s.Error)
	}
	if state := runState(t, a, "web1"); state != "running" {
		t.Errorf("the machine is %s", state)
	}
}
