package daemon_test

import (
	"io"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/cmd/internal/daemon"
	"github.com/pagewarp/pagewarp/cmd/internal/daemon/daemontest"
	"github.com/pagewarp/pagewarp/relocate"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

func scrape(t *testing.T, m *daemon.Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.ServeTCP().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	b, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("scrape: %d %v\n%s", w.Code, err, b)
	}
	return string(b)
}

func TestMetrics(t *testing.T) {
	h := daemontest.New()
	m := daemon.NewMetrics(h)
	h.Add(relocate.Status{
		VM: "web1", Role: relocate.RoleSource, Session: "0badcafe", Phase: relocate.PhaseDraining, Connected: true,
		PagesTotal: 100, PagesDemand: 3, PagesPrecache: 40, PagesZero: 7, PagesRemaining: 50, PagesReserved: 7, DemandPaced: 2,
		BytesGuest: 204800, BytesWire: 65536, RateBytes: 1e6, ChannelsUp: 3, ChannelsTotal: 4, Reconnects: 2, DowntimeMS: 6.5,
		FaultLatency: relocate.Latency{Mean: 200, P50: 150, P99: 900, P999: 1500, Max: 2000, Count: 3},
		Stages:       map[string]relocate.Latency{"wire": {Mean: 100, P50: 100, P99: 200, P999: 300, Max: 400, Count: 3}},
		RDMA:         &relocate.RDMAStatus{Device: "mlx5_0", Port: 1, ReadsPosted: 12, ReadsCompleted: 10, ReadsRetried: 2, ReadBytes: 40960, PagesInPlace: 9, Messages: 7, MessageBytes: 9000, SendBuildMS: 250, TCPFetches: 4, Fallbacks: 1, ChannelsUp: 3},
	})
	ended := relocate.Status{VM: "db1", Role: relocate.RoleDestination, Session: "1", Phase: relocate.PhaseDone}
	h.Add(ended)
	h.Add(ended) // shown twice, as a restart could: counted once, and no broken scrape
	const l = `{role="source",session="0badcafe",vm="web1"`
	for range 2 { // counting must not depend on how often somebody looks
		got := scrape(t, m)
		for _, want := range []string{
			`pagewarp_relocation_phase{phase="draining",role="source",session="0badcafe",vm="web1"} 1`,
			`pagewarp_pages{class="demand",role="source",session="0badcafe",vm="web1"} 3`,
			`pagewarp_pages{class="remaining",role="source",session="0badcafe",vm="web1"} 50`,
			`pagewarp_pages{class="reserved",role="source",session="0badcafe",vm="web1"} 7`,
			`pagewarp_demand_sends_paced_total{role="source",session="0badcafe",vm="web1"} 2`,
			"pagewarp_guest_bytes_total" + l + "} 204800", "pagewarp_wire_bytes_total" + l + "} 65536",
			"pagewarp_downtime_seconds" + l + "} 0.0065", "pagewarp_connected" + l + "} 1", "pagewarp_reconnects_total" + l + "} 2",
			`pagewarp_channels{role="source",session="0badcafe",state="up",vm="web1"} 3`,
			"pagewarp_fault_latency_seconds" + l + `,quantile="0.99"} 0.0009`,
			"pagewarp_fault_latency_seconds_count" + l + "} 3", "pagewarp_fault_latency_seconds_sum" + l + "} 0.0006",
			`pagewarp_fault_stage_latency_seconds{role="source",session="0badcafe",stage="wire",vm="web1",quantile="1"} 0.0004`,
			`pagewarp_rdma_reads_total{device="mlx5_0:1",role="source",session="0badcafe",state="retried",vm="web1"} 2`,
			`pagewarp_rdma_read_bytes_total{device="mlx5_0:1",role="source",session="0badcafe",vm="web1"} 40960`,
			`pagewarp_rdma_messages_total{device="mlx5_0:1",role="source",session="0badcafe",vm="web1"} 7`,
			`pagewarp_rdma_message_bytes_total{device="mlx5_0:1",role="source",session="0badcafe",vm="web1"} 9000`,
			`pagewarp_rdma_send_seconds_total{device="mlx5_0:1",role="source",session="0badcafe",vm="web1",what="build"} 0.25`,
			`pagewarp_rdma_pages_in_place_total{device="mlx5_0:1",role="source",session="0badcafe",vm="web1"} 9`,
			`pagewarp_rdma_fallbacks_total{device="mlx5_0:1",role="source",session="0badcafe",vm="web1"} 1`,
			`pagewarp_relocations_total{outcome="done",role="destination"} 1`,
			`pagewarp_relocations_total{outcome="lost",role="source"} 0`,
			"pagewarp_build_info{", "go_goroutines ", "process_open_fds ",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("no %s in\n%s", want, got)
			}
		}
	}
}

// TestMetricsOfTheEnded: an alert on a cut channel must not go off for a relocation that is
// over.
func TestMetricsOfTheEnded(t *testing.T) {
	h := daemontest.New()
	m := daemon.NewMetrics(h)
	h.Add(relocate.Status{VM: "db1", Role: relocate.RoleSource, Session: "1", Phase: relocate.PhaseDone, BytesWire: 7, ChannelsUp: 3, ChannelsTotal: 3})
	got := scrape(t, m)
	for _, name := range []string{"pagewarp_connected{", "pagewarp_channels{", "pagewarp_guest_bytes_per_second{"} {
		if strings.Contains(got, name) {
			t.Errorf("%s of an ended relocation in\n%s", name, got)
		}
	}
	if !strings.Contains(got, `pagewarp_wire_bytes_total{role="source",session="1",vm="db1"} 7`) {
		t.Errorf("its bytes are not in\n%s", got)
	}
}

// TestMetricsFollowTheRules of Prometheus, and the documentation has them all.
func TestMetricsFollowTheRules(t *testing.T) {
	h := daemontest.New()
	m := daemon.NewMetrics(h)
	h.Add(relocate.Status{
		VM: "web1", Role: relocate.RoleSource, Session: "1", Phase: relocate.PhaseDraining, DowntimeMS: 1,
		FaultLatency: relocate.Latency{Count: 1}, Stages: map[string]relocate.Latency{"wire": {Count: 1}}, RDMA: &relocate.RDMAStatus{Device: "mlx5_0"},
	})
	text := scrape(t, m)
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	doc, err := os.ReadFile("../../../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(text, "\n") {
		name, ok := strings.CutPrefix(line, "# HELP ")
		name, _, _ = strings.Cut(name, " ")
		if ok && strings.HasPrefix(name, "pagewarp_") && !strings.Contains(string(doc), "`"+name+"`") {
			t.Errorf("docs/OPERATIONS.md does not have %s", name)
		}
	}
}

func TestOutcomesBetweenScrapes(t *testing.T) {
	h := daemontest.New()
	m := daemon.NewMetrics(h)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { m.Watch(stop); close(done) }()
	if _, err := h.Relocate(t.Context(), "web1", "x", relocate.Options{}); err != nil {
		t.Fatal(err)
	}
	h.Phase("web1", relocate.PhaseRolledBack, nil)
	const want = `pagewarp_relocations_total{outcome="rolled-back",role="source"} 1`
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(scrape(t, m), want); {
		if time.Now().After(deadline) {
			t.Fatal("the rollback was not counted")
		}
	}
	close(stop)
	<-done
}

func TestMetricsOnTheSocket(t *testing.T) {
	_, _, _, sock := serve(t, config.Default())
	if status, _, _ := raw(t, sock, "GET", "/metrics", ""); status != 200 {
		t.Errorf("GET /metrics: %d", status)
	}
}
