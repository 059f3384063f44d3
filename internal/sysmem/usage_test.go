package sysmem

import (
	"os"
	"testing"
)

func TestParseUsage(t *testing.T) {
	u, err := parseUsage("Name:\tx\nVmPTE:\t      64 kB\nRssAnon:\t    1024 kB\nRssFile:\t 9 kB\n")
	if want := (Usage{Anonymous: 1 << 20, PageTables: 64 << 10}); err != nil || u != want {
		t.Errorf("%+v, %v, want %+v", u, err, want)
	}
	for _, bad := range []string{"", "VmPTE: 1 kB\n", "VmPTE: 1 kB\nRssAnon: -1 kB\n", "VmPTE: 99999999999999999999 kB\nRssAnon: 1 kB\n"} {
		if u, err := parseUsage(bad); err == nil {
			t.Errorf("%q is %+v", bad, u)
		}
	}
	if u, err := UsageOf(os.Getpid()); err != nil || u.Anonymous == 0 || u.PageTables == 0 {
		t.Errorf("own usage %+v, %v", u, err)
	}
	if _, err := UsageOf(1 << 30); err == nil {
		t.Error("a process that is none has a usage")
	}
}
