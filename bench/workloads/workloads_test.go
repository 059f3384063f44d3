package workloads

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/pagewarp/pagewarp/internal/guestapi"
)

// Every load of the guest has a kind, and every kind can be written, read and
// put on a kernel's command line.
func TestEveryKind(t *testing.T) {
	var names []string
	for _, k := range Kinds() {
		l, err := Parse(k.Name)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Parse(l.String()); err != nil || again != l {
			t.Errorf("%s became %q, which reads as %+v, %v", k.Name, l, again, err)
		}
		g := guestapi.DefaultConfig()
		g.IP = netip.MustParsePrefix("10.77.0.100/24")
		g = l.Apply(g)
		if got, err := guestapi.ParseCmdline(g.Cmdline()); err != nil || got.Load != g.Load || got.WorkingSetMiB != l.WorkingSetMiB {
			t.Errorf("%s: command line %q reads as %+v, %v", k.Name, g.Cmdline(), got, err)
		}
		if k.Name != Web {
			names = append(names, g.Load)
		}
		if want := k.Name == guestapi.LoadRedis; want != strings.Contains(l.Image(), "programs") {
			t.Errorf("%s: image %s", k.Name, l.Image())
		}
	}
	if !slices.Equal(names, guestapi.Loads()) {
		t.Errorf("kinds %q, the guest has %q", names, guestapi.Loads())
	}
}

func TestWriteAndRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.SampledFrom(kinds).Draw(t, "kind")
		l, err := Default(k.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range k.Params {
			switch p {
			case paramWS:
				l.WorkingSetMiB = rapid.IntRange(1, 1<<20).Draw(t, p)
			case paramRate:
				l.Rate = rapid.IntRange(0, 1e6).Draw(t, p)
			case paramSessions:
				l.Sessions = rapid.IntRange(1, 1e5).Draw(t, p)
			case paramHalf:
				l.Half = rapid.Float64Range(0, 1).Draw(t, p)
			case paramExponent:
				l.Exponent = rapid.Float64Range(1.01, 10).Draw(t, p)
			case paramScale:
				l.Scale = rapid.Float64Range(1e-3, 1).Draw(t, p)
			case paramFront:
				l.Front = rapid.SampledFrom([]string{"", "nginx"}).Draw(t, p)
			}
		}
		var got Load
		if err := got.Set(l.String()); err != nil || got != l {
			t.Fatalf("%q reads as %+v, %v, want %+v", l, got, err, l)
		}
	})
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"chrun":                        "choose one of web",
		"churn:rat=1":                  "it has ws, half, rate",
		"churn:rate=-1":                "rate=-1",
		"churn:rate":                   "rate=: want",
		"sweep:rate=1":                 "no parameter \"rate\"",
		"zipf:exponent=1":              "exponent=1",
		"random:half=NaN":              "half=NaN",
		"random:":                      "no parameter \"\"",
		"specweb-banking:scale=0":      "scale=0",
		"specweb-banking:front=apache": "want nginx",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): error %v, want one with %q", text, err, want)
		}
	}
}
