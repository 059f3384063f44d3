package main

import (
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/relocate"
)

// After a restart the daemon knows how a relocation ended, and none of its counters; one
// that was given up before its offer came has no name.
func TestTableOfTheEnded(t *testing.T) {
	var b strings.Builder
	relocationTable(&b, []relocate.Status{
		{VM: "web1", Role: relocate.RoleSource, Peer: "hostB:7070", Phase: relocate.PhaseDone},
		{Role: relocate.RoleDestination, Peer: "hostA:40000", Phase: relocate.PhaseRolledBack},
		{VM: "web2", Role: relocate.RoleSource, Peer: "hostB:7070", Phase: relocate.PhaseDone, PagesTotal: 10, PagesDemand: 3, PagesPrecache: 7},
	})
	var got []string
	for _, line := range strings.Split(strings.TrimSpace(b.String()), "\n")[1:] {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"web1 source hostB:7070 done - - - - - - - -",
		"- destination hostA:40000 rolled-back - - - - - - - -",
		"web2 source hostB:7070 done 100 % 3 7 - - - - -",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTopShowsWhatIsUnderWay(t *testing.T) {
	ended, live := relocate.Status{Phase: relocate.PhaseDone}, relocate.Status{VM: "live", Phase: relocate.PhaseDraining}
	rs := newest([]relocate.Status{live, ended, ended, live, {VM: "last", Phase: relocate.PhaseLost}}, 2)
	var got []string
	for _, s := range rs {
		got = append(got, s.VM)
	}
	if strings.Join(got, ",") != "live,,live,last" {
		t.Errorf("%q", got)
	}
}
