package relocate

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/pagewarp/pagewarp/pagecache"
)

func TestRunsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		runs := rapid.SliceOf(rapid.Custom(func(t *rapid.T) pagecache.Run {
			return pagecache.Run{
				Region: rapid.SampledFrom([]uint32{0, 1, 1<<32 - 1}).Draw(t, "region"),
				First:  rapid.Uint64().Draw(t, "first"), Count: rapid.Uint32().Draw(t, "count"),
			}
		})).Draw(t, "runs")
		got, err := parseRuns(appendRuns(nil, runs))
		if err != nil || !slices.Equal(got, runs) {
			t.Fatalf("%v, want %v: %v", got, runs, err)
		}
	})
}

// TestRunsAreBounded: a list that is too long loses its end, the oldest pages.
func TestRunsAreBounded(t *testing.T) {
	far := make([]pagecache.Run, pagecache.MaxListed)
	for i := range far {
		far[i] = pagecache.Run{Region: uint32(i % 2), First: uint64(i%3) << 40, Count: 1 << 30}
	}
	b := appendRuns(nil, far)
	got, err := parseRuns(b)
	if err != nil || len(got) < 1000 || len(got) >= len(far) || !slices.Equal(got, far[:len(got)]) {
		t.Errorf("%d of %d runs in %d bytes: %v", len(got), len(far), len(b), err)
	}
	near := make([]pagecache.Run, 2*pagecache.MaxListed)
	for i := range near {
		near[i] = pagecache.Run{First: uint64(i) * 10, Count: 3}
	}
	if got, err = parseRuns(appendRuns(nil, near)); err != nil || len(got) != pagecache.MaxListed {
		t.Errorf("%d runs, %v", len(got), err)
	}
	if _, err := parseRuns(make([]byte, maxHotBytes+1)); err == nil {
		t.Error("a list of any length is taken")
	}
}

func FuzzParseRuns(f *testing.F) {
	f.Add(appendRuns(nil, []pagecache.Run{{Region: 1, First: 5, Count: 7}, {Region: 1, First: 2, Count: 1}}))
	f.Add(binary.AppendUvarint([]byte{0}, 1<<60))
	f.Fuzz(func(t *testing.T, b []byte) {
		runs, err := parseRuns(b)
		if err == nil && len(runs) > pagecache.MaxListed {
			t.Fatalf("%d runs", len(runs))
		}
	})
}

// TestHotList: the destination hears of the pages that the guest touched; lists
// that are wrong are said to be so, and the relocation goes on.
func TestHotList(t *testing.T) {
	// A destination that is ready before the source has set its watch up has no list.
	slow := filepath.Join(t.TempDir(), "slow-qemu")
	if err := os.WriteFile(slow, []byte("#!/bin/sh\nsleep 0.5\nexec qemu-system-x86_64 \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(cfg *HostConfig) { withBinary(cfg, slow) })
	r.relocate(r.b.addr, Options{Precache: strings.Join(pagecache.PolicyNames, ",")})
	bad := []hotMsg{
		{Runs: appendRuns(nil, []pagecache.Run{{Region: 9, First: 0, Count: 1}})},
		{Runs: appendRuns(nil, []pagecache.Run{{Region: 0, First: 1 << 40, Count: 1}})},
		{Runs: []byte{0, 5, 0x80}},
	}
	r.atPhase(r.a, PhaseReady, func() {
		r.a.mu.Lock()
		defer r.a.mu.Unlock()
		for _, o := range r.a.outgoing { // hot was set before the phase was shown
			for _, m := range bad {
				if err := o.hot.ctl.send(msgHot, m); err != nil {
					t.Error(err)
				}
			}
			if err := o.hot.ctl.send(msgHot, "not a list"); err != nil {
				t.Error(err)
			}
		}
	})
	if s := r.awaitEnd(); s.Phase != PhaseDone {
		t.Fatalf("ended %s: %s", s.Phase, s.Error)
	}
	r.b.await(t, "web1", PhaseDone)
	r.runsAt(r.b)
	var warnings []string
	all, _ := r.b.events.after(0)
	for _, ev := range all {
		if ev.Kind == "warning" && strings.Contains(ev.Text, "hot list is ignored") {
			warnings = append(warnings, ev.Text)
		}
	}
	text := strings.Join(warnings, "\n")
	for _, want := range []string{"region 9, which there is not", "1099511627776+1 of region 0", "middle of a number", "cannot unmarshal"} {
		if !strings.Contains(text, want) {
			t.Errorf("no warning has %q:\n%s", want, text)
		}
	}
	if len(warnings) != len(bad)+1 {
		t.Errorf("%d warnings:\n%s", len(warnings), text)
	}
	s := r.b.last(t, RoleDestination)
	if s.HotPages == 0 || len(s.Policies) != len(pagecache.PolicyNames) || s.Policies[0].Name != "hot" || s.Policies[0].Pages == 0 {
		t.Errorf("%d pages listed, policies %+v", s.HotPages, s.Policies)
	}
}

// TestPrecachePolicies: what is not chosen brings nothing, and an unknown name is
// refused.
func TestPrecachePolicies(t *testing.T) {
	r := newRig(t, nil)
	if _, err := r.a.Relocate(t.Context(), "web1", r.b.addr, Options{Precache: "hot,cold"}); err == nil || !strings.Contains(err.Error(), `"cold"`) {
		t.Errorf("an unknown policy: %v", err)
	}
	r.arrives(Options{Precache: "sweep"})
	r.runsAt(r.b)
	s := r.b.last(t, RoleDestination)
	if s.HotPages != 0 || len(s.Policies) != 1 || s.Policies[0].Name != "sweep" || s.Policies[0].Pages == 0 {
		t.Errorf("%d pages listed, policies %+v", s.HotPages, s.Policies)
	}
}
