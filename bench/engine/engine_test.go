package engine

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/bench/fault"
	"github.com/pagewarp/pagewarp/bench/process"
	"github.com/pagewarp/pagewarp/internal/accel"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate/qemu"
)

func TestMain(m *testing.M) {
	fault.Main()
	process.Main()
	goleak.VerifyTestMain(m)
}

func TestNewKnowsEveryName(t *testing.T) {
	for _, name := range AllNames() {
		e, err := New(name, Env{Root: "/some/root"})
		if err != nil {
			t.Fatal(err)
		}
		if e.Name() != name {
			t.Errorf("%s calls itself %s", name, e.Name())
		}
		var c rig.VMConfig
		e.Arrange(&c)
		if want := strings.HasPrefix(name, "qemu-"); c.PrivateMemory != want {
			t.Errorf("%s: private memory %v, want %v", name, c.PrivateMemory, want)
		}
		want := hostQEMU
		if strings.HasSuffix(name, AtRoot) {
			want = "/some/root/usr/bin/qemu-system-x86_64"
		}
		if c.QEMU != want {
			t.Errorf("%s runs %s, want %s", name, c.QEMU, want)
		}
	}
}

func TestUnknownNames(t *testing.T) {
	for name, want := range map[string]string{
		"qemu-poscopy":     "did you mean qemu-postcopy?",
		"pagewrap":         "did you mean pagewarp?",
		"qemu-multifd@rot": "did you mean qemu-multifd@root?",
		"zzzzzzzzzzzzzz":   "choose from pagewarp, qemu-precopy",
		"":                 "choose from",
	} {
		_, err := New(name, Env{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New(%q): %v, want %q", name, err, want)
		}
	}
	if _, err := New("zzzzzzzzzzzzzz", Env{}); err == nil || strings.Contains(err.Error(), "did you mean") {
		t.Errorf("a name that is near none: %v", err)
	}
	for _, names := range [][]string{nil, {"pagewarp", "qemu-precopy", "pagewarp"}} {
		if _, err := ParseEngines(names, Env{}); err == nil {
			t.Errorf("%q was accepted", names)
		}
	}
}

func TestAvailable(t *testing.T) {
	e, err := New("qemu-postcopy@root", Env{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Available(t.Context()); err == nil || !strings.Contains(err.Error(), "--make-root") {
		t.Errorf("without a root: %v, want how to make one", err)
	}
	old := &native{name: "future", binary: hostQEMU, mode: mode{name: "future", since: qemu.Version{Major: 1000}}}
	if _, err := old.Available(t.Context()); err == nil || !strings.Contains(err.Error(), "too old: future needs 1000.0.0") {
		t.Errorf("a mode of the future: %v", err)
	}
}

// all are the capabilities of QEMU 7.2 that matter here.
var all = []string{capIgnoreShared, capAutoConverge, capMultifd, capPostcopy, capPreempt, capBlocktime, capEvents, "xbzrle"}

func modeOf(t *testing.T, name string) mode {
	t.Helper()
	i := slices.IndexFunc(modes, func(m mode) bool { return m.name == name })
	if i < 0 {
		t.Fatalf("no mode %s", name)
	}
	return modes[i]
}

func TestPlans(t *testing.T) {
	const gigabit = 125_000_000
	for _, c := range []struct {
		mode           string
		link           uint64
		src, dst       []string
		postcopy       bool
		channels       any
		compression    any
		settingsHave   []string
		settingsLackOf string
	}{
		{mode: "qemu-precopy", src: []string{capAutoConverge, capEvents}, dst: []string{capAutoConverge, capEvents}, settingsHave: []string{"auto-converge", "300 ms"}, settingsLackOf: "postcopy"},
		{mode: "qemu-precopy-plain", src: []string{capEvents}, dst: []string{capEvents}, settingsLackOf: "auto-converge"},
		{mode: "qemu-multifd", link: gigabit, src: []string{capMultifd, capAutoConverge, capEvents}, dst: []string{capMultifd, capAutoConverge, capEvents}, channels: 3, compression: "zstd", settingsHave: []string{"3 channels", "zstd"}},
		{mode: "qemu-multifd", src: []string{capMultifd, capAutoConverge, capEvents}, dst: []string{capMultifd, capAutoConverge, capEvents}, channels: 3, compression: "none"},
		{mode: "qemu-postcopy", src: []string{capPostcopy, capEvents}, dst: []string{capPostcopy, capEvents, capBlocktime}, postcopy: true, settingsLackOf: "preempt"},
		{mode: "qemu-postcopy-preempt", src: []string{capPostcopy, capPreempt, capEvents}, dst: []string{capPostcopy, capPreempt, capEvents, capBlocktime}, postcopy: true, settingsHave: []string{"at once"}},
		{mode: Floor, src: []string{capIgnoreShared, capEvents}, dst: []string{capIgnoreShared, capEvents}, settingsHave: []string{"one memory file for both"}, settingsLackOf: "private"},
	} {
		p, err := modeOf(t, c.mode).plan(all, c.link, 3)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(p.src, c.src) || !slices.Equal(p.dst, c.dst) {
			t.Errorf("%s: capabilities %q and %q, want %q and %q", c.mode, p.src, p.dst, c.src, c.dst)
		}
		if p.srcParams["max-bandwidth"] != beyondAnyLink {
			t.Errorf("%s: bandwidth %v", c.mode, p.srcParams["max-bandwidth"])
		}
		if _, ok := p.srcParams["max-postcopy-bandwidth"]; ok != c.postcopy {
			t.Errorf("%s: a limit for postcopy: %v", c.mode, ok)
		}
		for _, params := range []map[string]any{p.srcParams, p.dstParams} {
			if params["multifd-channels"] != c.channels || params["multifd-compression"] != c.compression {
				t.Errorf("%s: parameters %v, want channels %v, compression %v", c.mode, params, c.channels, c.compression)
			}
		}
		for _, s := range c.settingsHave {
			if !strings.Contains(p.settings, s) {
				t.Errorf("%s: settings %q lack %q", c.mode, p.settings, s)
			}
		}
		if c.settingsLackOf != "" && strings.Contains(p.settings, c.settingsLackOf) {
			t.Errorf("%s: settings %q have %q", c.mode, p.settings, c.settingsLackOf)
		}
	}
	if _, err := modeOf(t, "qemu-postcopy-preempt").plan([]string{capPostcopy}, 0, 2); err == nil || !strings.Contains(err.Error(), capPreempt) {
		t.Errorf("a QEMU without preempt: %v", err)
	}
}

func TestRootCommands(t *testing.T) {
	c := strings.Join(RootCommand("/x/root", "http://mirror/debian"), " ")
	for _, want := range []string{
		`Acquire::Check-Valid-Until "false"`, "qemu-system-x86,criu,patchelf", "unstable /x/root http://mirror/debian", "--variant=extract",
	} {
		if !strings.Contains(c, want) {
			t.Errorf("%q lacks %q", c, want)
		}
	}
	p := PatchCommand("/x/root", "usr/bin/prog")
	if p[0] != "/x/root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" || p[len(p)-1] != "/x/root/usr/bin/prog" {
		t.Errorf("%q", p)
	}
	dir := t.TempDir()
	if _, err := MakeRoot(t.Context(), dir+"/..", "", func(string) {}); err == nil || !strings.Contains(err.Error(), "not empty") && !strings.Contains(err.Error(), "mmdebstrap") {
		t.Errorf("a root in a folder that is in use: %v", err)
	}
}

func TestParseSizes(t *testing.T) {
	for text, want := range map[string]uint64{"512M": 512 << 20, "4G": 4 << 30, "1.5G": 3 << 29, "1024G": 1 << 40, "536870912": 512 << 20} {
		if got, err := ParseRAM(text); err != nil || got != want {
			t.Errorf("ParseRAM(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "G", "64M", "2T", "-1G", "513.3M", "NaN", "NaNG", "2048G", "inf"} {
		if got, err := ParseRAM(text); err == nil {
			t.Errorf("ParseRAM(%q) = %d", text, got)
		}
	}
	for text, want := range map[string]uint64{"none": 0, "1G": 125_000_000, "10G": 1_250_000_000, "100M": 12_500_000} {
		if got, err := ParseLink(text); err != nil || got != want {
			t.Errorf("ParseLink(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "1", "0", "1000G", "fast", "-1G", "NaN"} {
		if got, err := ParseLink(text); err == nil {
			t.Errorf("ParseLink(%q) = %d", text, got)
		}
	}
}

func TestParseLoad(t *testing.T) {
	l, err := ParseLoad("touch:ws=64")
	if err != nil || l.Kind != "random" || l.WorkingSetMiB != 64 {
		t.Errorf("touch:ws=64 is %+v, %v", l, err)
	}
	for text, want := range map[string]string{
		"chrun": "did you mean churn?", "specweb-bankin": "did you mean specweb-banking?", "nonsense-load": "choose from touch, web", "touch:rate=3": "no parameter",
	} {
		if _, err := ParseLoad(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseLoad(%q): %v, want %q", text, err, want)
		}
	}
}

// Only a guest under TCG that an old QEMU moves by precopy has the odd memory.
func TestKeepsWrites(t *testing.T) {
	for _, c := range []struct {
		mode  string
		old   bool
		accel string
		odd   bool
	}{
		{"qemu-precopy", true, accel.TCG, true}, {"qemu-multifd", true, accel.TCG, true}, {"qemu-precopy", false, accel.TCG, false},
		{"qemu-precopy", true, accel.KVM, false}, {"qemu-postcopy", true, accel.TCG, false}, {Floor, true, accel.TCG, false},
	} {
		e, err := New(c.mode, Env{})
		if err != nil {
			t.Fatal(err)
		}
		n := e.(*native)
		n.old = c.old
		v := rig.VMConfig{RAM: 512 << 20, Accel: c.accel}
		n.keepsWrites(&v)
		// Not a multiple of 64 pages is what counts.
		if odd := v.RAM%(64*4096) != 0; odd != c.odd || v.RAM%oddMemory != 0 {
			t.Errorf("%+v: %d bytes", c, v.RAM)
		}
	}
}

// slow is an observer whose load needs some looks until it has settled.
type slow struct {
	observer
	looks int
}

func (s *slow) settled() bool { s.looks--; return s.looks < 0 }

// Of Redis the result says how much there is: more of ws makes no more of it.
func TestRedisSaysItsSize(t *testing.T) {
	for text, want := range map[string]string{"redis:ws=16": "Redis has 8192 values of 1 KiB", "redis:ws=512": "Redis has 20000 values of 1 KiB"} {
		l, err := ParseLoad(text)
		if err != nil {
			t.Fatal(err)
		}
		var o observer = &redisObserver{keys: redisKeys(l)}
		if n, ok := o.(noter); !ok || n.note() != want {
			t.Errorf("%s: %v, want %q", text, o, want)
		}
	}
}

// The command waits for a load that takes a while; no other does.
func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		if note, err := settle(t.Context(), &guestObserver{}); note != "" || err != nil || time.Since(begin) != 0 {
			t.Errorf("a load that is there at once: %q, %v", note, err)
		}
		if note, err := settle(t.Context(), &slow{looks: 10}); note != "" || err != nil || time.Since(begin) != 10*settleEvery {
			t.Errorf("a slow load: %q, %v, after %v", note, err, time.Since(begin))
		}
		if note, err := settle(t.Context(), &slow{looks: 1 << 30}); !strings.Contains(note, "not under way") || err != nil {
			t.Errorf("a load that never is: %q, %v", note, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := settle(ctx, &slow{looks: 1}); !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted: %v", err)
		}
	})
}
