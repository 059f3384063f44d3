package main

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/bench/load"
	"github.com/pagewarp/pagewarp/internal/accel"
	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/rig"
)

func getJSON(t *testing.T, h *rig.Host, url string, into any) {
	t.Helper()
	body, err := h.Get(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(body, into); err != nil {
		t.Fatalf("GET %s: %v in %.300q", url, err, body)
	}
}

// A real guest under load, whose host loses its link for a while: the client
// sees the blackout, and the guest's memory stays whole.
func TestGuestUnderLoadOverACut(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 85*time.Second)
	defer cancel()
	kernel, initrd, err := rig.GuestImage()
	if err != nil {
		t.Fatal(err)
	}
	r, err := rig.New()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left := rig.Leftovers(r.Ident); len(left) > 0 {
			t.Errorf("the rig left behind: %q", left)
		}
	}()
	a, client := r.Host("a"), r.Host("client")
	if err := a.AddTap("tap0"); err != nil {
		t.Fatal(err)
	}
	guest := guestapi.DefaultConfig()
	guest.IP = netip.MustParsePrefix("10.77.0.100/24")
	guest.WorkingSetMiB = 64
	guest.Touch = true
	vm, err := rig.StartVM(ctx, a, rig.VMConfig{
		Name: "web1", RAM: 512 << 20, Accel: accel.Auto, CacheDir: filepath.Dir(initrd), Kernel: kernel, Initrd: initrd,
		Append: guestapi.BaseCmdline + " " + guest.Cmdline(), Tap: "tap0",
	})
	if err != nil {
		t.Fatal(err)
	}
	// An accelerator that was chosen wrongly shows here: the guest never comes.
	t.Logf("accelerator: %s: %s", vm.Accel, vm.AccelReason)
	if err := vm.WaitReady(ctx, client, guest); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(vm.MemPath); err != nil || st.Size() != 512<<20 {
		t.Errorf("memory file %s: %v, %v; want 512 MiB", vm.MemPath, st, err)
	}

	base := "http://10.77.0.100:80"
	run, err := load.Start(ctx, load.Config{Base: base, Conns: 3, Dial: client.Dial})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Stop()
	hold(t, 3500*time.Millisecond)
	cut := time.Now()
	if err := a.Cut(); err != nil {
		t.Fatal(err)
	}
	hold(t, time.Second)
	if err := a.Restore(); err != nil {
		t.Fatal(err)
	}
	restored := time.Now()
	hold(t, 3*time.Second)
	l := run.Stop()

	before, during, after := l.Summary(l.Start, cut), l.Summary(cut, restored), l.Summary(restored, l.End)
	t.Logf("before %+v", before)
	t.Logf("during %+v", during)
	t.Logf("after %+v", after)
	if before.Good < 100 || after.Good < 20 {
		t.Errorf("%d answers before the cut and %d after it, want 100 and 20 at least", before.Good, after.Good)
	}
	if before.Failed+before.Refused+before.Corrupt+after.Refused+after.Corrupt > 0 {
		t.Errorf("errors outside the cut: %q", before.FirstErrors)
	}
	gap := l.LongestGap(l.Start, l.End)
	length := float64(restored.Sub(cut).Milliseconds())
	if gap.LengthMS < length-100 || gap.LengthMS > length+2500 {
		t.Errorf("the client saw a blackout of %.0f ms over a cut of %.0f ms", gap.LengthMS, length)
	}
	if at := float64(cut.Sub(l.Start).Milliseconds()); gap.StartMS < at-500 || gap.StartMS > at+100 {
		t.Errorf("the blackout began at %.0f ms, the cut at %.0f ms", gap.StartMS, at)
	}

	var st guestapi.Stats
	getJSON(t, client, base+"/stats", &st)
	if st.BadPages != 0 || st.Rewrites == 0 || st.Touches == 0 || st.Requests == 0 || st.Pages != 64<<8 {
		t.Errorf("stats %+v", st)
	}
	var v guestapi.Verify
	getJSON(t, client, base+"/verify", &v)
	if v.Bad != 0 || v.TouchesMissing != 0 || v.Pages != st.Pages {
		t.Errorf("verify %+v", v)
	}
	var bins []guestapi.TouchBin
	getJSON(t, client, base+"/touches", &bins)
	if len(bins) < 50 {
		t.Errorf("%d bins of touches in %s", len(bins), time.Duration(st.UptimeNS))
	}
	t.Logf("stats %+v, verify %+v, last bins %v", st, v, bins[max(0, len(bins)-5):])

	if _, err := client.Get(ctx, base+"/poweroff"); err != nil {
		t.Error(err)
	}
	if err := vm.Wait(ctx); err != nil {
		t.Errorf("after /poweroff QEMU ended with %v", err)
	}
	if text, _ := os.ReadFile(vm.ConsolePath); strings.Contains(string(text), guestapi.BadPageLine) {
		t.Errorf("the console tells of bad pages:\n%s", text)
	}
}

// hold lets the load go on for d: the length is the experiment's, it waits for
// nothing.
func hold(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
