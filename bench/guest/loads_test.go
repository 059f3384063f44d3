package main

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/bench/specweb"
	"github.com/pagewarp/pagewarp/bench/specweb/model"
	"github.com/pagewarp/pagewarp/bench/workloads"
	"github.com/pagewarp/pagewarp/bench/workloads/resp"
	"github.com/pagewarp/pagewarp/internal/accel"
	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// bootAndLoad bounds a test: most take 15 s on an idle machine, under emulation.
const bootAndLoad = 100 * time.Second

// bootLoad boots the guest on a host of its own and returns the host of its
// client. image is the initramfs's name in the image's folder.
func bootLoad(ctx context.Context, t *testing.T, g guestapi.Config, image string) *rig.Host {
	t.Helper()
	kernel, initrd, err := rig.GuestImage()
	if err != nil {
		t.Fatal(err)
	}
	initrd = filepath.Join(filepath.Dir(initrd), image)
	if _, err := os.Stat(initrd); err != nil {
		t.Fatalf("the test guest is not built with its programs: %v; run 'make guest'", err)
	}
	r, err := rig.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	a, client := r.Host("a"), r.Host("client")
	if err := a.AddTap("tap0"); err != nil {
		t.Fatal(err)
	}
	vm, err := rig.StartVM(ctx, a, rig.VMConfig{
		Name: "web1", RAM: 512 << 20, Accel: accel.Auto, CacheDir: filepath.Dir(initrd),
		Kernel: kernel, Initrd: initrd,
		Append: guestapi.BaseCmdline + " " + g.Cmdline(), Tap: "tap0",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.WaitReady(ctx, client, g); err != nil {
		t.Fatal(err)
	}
	return client
}

func loadConfig(load string) guestapi.Config {
	g := guestapi.DefaultConfig()
	g.IP = netip.MustParsePrefix("10.77.0.100/24")
	g.WorkingSetMiB, g.Load = 16, load
	g.Sessions, g.Scale = 6, 0.02
	return g
}

// visit puts the SPECweb-style load on the guest until it has pages pages, and
// fails if one answer was not what it must be.
func visit(ctx context.Context, t *testing.T, client *rig.Host, g guestapi.Config, workload string, pages int) {
	t.Helper()
	run, err := specweb.Start(ctx, specweb.Config{
		Workload: workload, Plain: "http://10.77.0.100:80", Secure: "https://10.77.0.100:443",
		Sessions: g.Sessions, Scale: g.Scale, Seed: 1, Dial: client.Dial, Deadline: 20 * time.Second, DialTimeout: 2 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for c, _ := run.Progress(); c.Pages() < pages; c, _ = run.Progress() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			l := run.Stop()
			t.Fatalf("%v; so far %+v", ctx.Err(), l.Summary(l.Start, l.End))
		}
	}
	l := run.Stop()
	s := l.Summary(l.Start, l.End)
	t.Logf("%s: %d good, %d tolerable, %d failed, %.1f pages/s, p50 %.1f ms, p99 %.1f ms",
		workload, s.Good, s.Tolerable, s.Failed, s.PerSecond, s.TimeUS.P50/1e3, s.TimeUS.P99/1e3)
	if s.Errors != 0 || s.GoodShare < 0.5 {
		t.Errorf("%.2f of the pages were good, %d errors: %q", s.GoodShare, s.Errors, s.FirstErrors)
	}
	var st guestapi.Stats
	getJSON(t, client, "http://10.77.0.100:80/stats", &st)
	var v guestapi.Verify
	getJSON(t, client, "http://10.77.0.100:80/verify", &v)
	if st.Requests < uint64(pages) || st.BadPages != 0 || v.Bad != 0 || v.Pages != st.Pages || st.Rewrites < uint64(pages) {
		t.Errorf("stats %+v, verify %+v", st, v)
	}
	var bins []guestapi.TouchBin
	getJSON(t, client, "http://10.77.0.100:80/touches", &bins)
	sum := uint64(0)
	for _, b := range bins {
		sum += b.N
	}
	if sum < uint64(pages)/2 {
		t.Errorf("the guest counted %d requests in its bins, the client %d", sum, pages)
	}
}

func TestGuestServesBanking(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), bootAndLoad)
	defer cancel()
	g := loadConfig(guestapi.LoadBanking)
	visit(ctx, t, bootLoad(ctx, t, g, "initramfs.cpio.gz"), g, model.Banking, 100)
}

// Behind nginx, the plain and the TLS pages of a workload that has both.
func TestGuestServesEcommerceBehindNginx(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), bootAndLoad)
	defer cancel()
	g := loadConfig(guestapi.LoadEcommerce)
	g.Front = guestapi.FrontNginx
	visit(ctx, t, bootLoad(ctx, t, g, "initramfs-programs.cpio.gz"), g, model.Ecommerce, 100)
}

// Churn keeps its rate, which the guest itself counts.
func TestGuestChurnsAtItsRate(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), bootAndLoad)
	defer cancel()
	l, err := workloads.Parse("churn:rate=400,ws=16")
	if err != nil {
		t.Fatal(err)
	}
	client := bootLoad(ctx, t, l.Apply(loadConfig("")), l.Image())
	hold(t, 4*time.Second)
	var bins []guestapi.TouchBin
	getJSON(t, client, "http://10.77.0.100:80/touches", &bins)
	if len(bins) < 20 {
		t.Fatalf("%d bins", len(bins))
	}
	last := bins[len(bins)-20:]
	sum := uint64(0)
	for _, b := range last[1:] {
		sum += b.N
	}
	rate := float64(sum) / (float64(last[19].TNS-last[0].TNS) / 1e9)
	t.Logf("%.0f pages/s", rate)
	if rate < 300 || rate > 500 {
		t.Errorf("%.0f pages are rewritten a second, want about 400", rate)
	}
	var v guestapi.Verify
	getJSON(t, client, "http://10.77.0.100:80/verify", &v)
	if v.Bad != 0 {
		t.Errorf("verify %+v", v)
	}
}

func TestGuestRunsRedis(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), bootAndLoad)
	defer cancel()
	l, err := workloads.Parse("redis:ws=64")
	if err != nil {
		t.Fatal(err)
	}
	client := bootLoad(ctx, t, l.Apply(loadConfig("")), l.Image())
	run, err := resp.Start(ctx, resp.Config{
		Addr: "10.77.0.100:6379", Conns: 3, Keys: 200, Writes: 0.3, Dial: client.Dial, DialTimeout: 2 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Stop()
	hold(t, 3*time.Second)
	log := run.Stop()
	s := log.Summary(log.Start, log.End)
	t.Logf("%.0f operations/s, p50 %.0f µs, p99 %.0f µs", s.PerSecond, s.LatencyUS.P50, s.LatencyUS.P99)
	if s.Good < 100 || s.Failed+s.Wrong != 0 {
		t.Errorf("summary %+v", s)
	}
	// The last commands are in a bin that has not ended yet.
	sum := uint64(0)
	for began := time.Now(); ; hold(t, 200*time.Millisecond) {
		var bins []guestapi.TouchBin
		getJSON(t, client, "http://10.77.0.100:80/touches", &bins)
		sum = 0
		for _, b := range bins {
			sum += b.N
		}
		if sum >= uint64(s.Good) || time.Since(began) > 10*time.Second {
			break
		}
	}
	if sum < uint64(s.Good) {
		t.Errorf("the guest counted %d commands in its bins, the client %d", sum, s.Good)
	}
}
