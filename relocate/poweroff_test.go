package relocate

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"golang.org/x/sys/unix"
)

// TestPowerOffInTheDrain: a machine that ends in good order before its memory is whole has
// arrived, and is not lost; nothing is left of it at either host.
func TestPowerOffInTheDrain(t *testing.T) {
	r := newRig(t, nil)
	r.relocate(r.b.addr, Options{Bandwidth: slow})
	r.b.await(t, "web1", PhaseDraining)
	recs, err := r.b.journal.load(time.Now())
	if err != nil || len(recs) != 1 {
		t.Fatalf("journal of the destination: %v, %v", recs, err)
	}
	if err := unix.Kill(recs[0].PID, unix.SIGTERM); err != nil { // QEMU then ends as by `quit`
		t.Fatal(err)
	}
	r.a.await(t, "web1", PhaseDone)
	r.b.await(t, "web1", PhaseDone)
	for _, s := range []Status{r.a.last(t, RoleSource), r.b.last(t, RoleDestination)} {
		if s.Error != "" || s.PagesRemaining == 0 {
			t.Errorf("the %s has %d pages remaining, error %q", s.Role, s.PagesRemaining, s.Error)
		}
	}
	all, _ := r.a.events.after(0)
	if !slices.ContainsFunc(all, func(e Event) bool { return strings.Contains(e.Text, poweredOff) }) {
		t.Errorf("the source does not say that it has powered off: %+v", all)
	}
	if got := r.a.Machines(t.Context()); len(got) != 0 {
		t.Errorf("the source has %+v", got)
	}
	r.b.awaitIdle(t)
	if got := r.b.Machines(t.Context()); len(got) != 0 {
		t.Errorf("the destination has %+v", got)
	}
	vmtest.NoTrace(t, r.b.dir, "*.json")
}
