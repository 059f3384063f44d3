package daemon

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/pagewarp/pagewarp/cmd/internal/version"
	"github.com/pagewarp/pagewarp/relocate"
)

// Metrics is the daemon's own registry; docs/OPERATIONS.md lists it. What describes relocations is read from
// the host when it is scraped; nothing is counted twice on the data path.
type Metrics struct {
	host     Observer
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	outcomes *prometheus.CounterVec

	mu      sync.Mutex
	counted map[relocation]bool // guarded by mu: ended ones in outcomes; only what Statuses still shows
}

// relocation identifies one side of one relocation.
type relocation struct {
	vm, session string
	role        relocate.Role
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("pagewarp_"+name, help, append([]string{"vm", "role", "session"}, labels...), nil)
}

var (
	descPhase      = desc("relocation_phase", "1 for the phase that the relocation is in.", "phase")
	descPages      = desc("pages", "Pages by class. demand, precache, zero: made resident so; same, moved: of these, those that the destination had, there or elsewhere; reserved: with memory before the switch-over; remaining; total.", "class")
	descEarly      = desc("pre_transfer_bytes_total", "Bytes on the wire before the switch-over, by a pre-transfer.")
	descSaved      = desc("saved_bytes_total", "Guest memory that did not travel, since the destination had it.")
	descGuest      = desc("guest_bytes_total", "Guest memory made resident, in bytes, zero pages included.")
	descWire       = desc("wire_bytes_total", "Bytes of frames on the wire, after the switch-over.")
	descRate       = desc("guest_bytes_per_second", "Guest memory made resident in the last second; of relocations under way.")
	descFault      = desc("fault_latency_seconds", "Latency of demand faults, from the touch to the wake-up.")
	descStage      = desc("fault_stage_latency_seconds", "Latency of demand faults by stage.", "stage")
	descPaced      = desc("demand_sends_paced_total", "Sends of demand fetches that waited, since the destination is short of CPU.")
	descChannels   = desc("channels", "Page channels: up, and agreed on; of relocations under way.", "state")
	descReconnects = desc("reconnects_total", "Times that a cut session was taken up again.")
	descReads      = desc("rdma_reads_total", "RDMA READs: posted; completed; retried, which did not complete and whose pages were fetched again.", "device", "state")
	descReadBytes  = desc("rdma_read_bytes_total", "Bytes that RDMA READs brought.", "device")
	descInPlace    = desc("rdma_pages_in_place_total", "Pages that RDMA READs brought into the guest's memory itself, without a copy.", "device")
	descMessages   = desc("rdma_messages_total", "Answers that came by RDMA SEND.", "device")
	descMsgBytes   = desc("rdma_message_bytes_total", "Bytes of answers that came by RDMA SEND.", "device")
	descSendTime   = desc("rdma_send_seconds_total", "The source's time for answers by RDMA SEND: build, to make them; wait, for the link. Shown at the source.", "device", "what")
	descTCPFetches = desc("rdma_tcp_fetches_total", "Fetches that TCP answered on channels that have RDMA, too.", "device")
	descFallbacks  = desc("rdma_fallbacks_total", "Times that a channel lost RDMA and went on by TCP.", "device")
	descRDMAUp     = desc("rdma_channels", "Channels whose pages come by RDMA.", "device")
	descRegistered = desc("rdma_registered_bytes", "Memory that this host has registered for RDMA: of the image, or for pages to land in.", "device")
	descConnected  = desc("connected", "1 while the control channel is up, 0 while it is cut; of relocations under way.")
	descDowntime   = desc("downtime_seconds", "From the guest's stop at the source to its resumption at the destination.")
)

// NewMetrics makes the registry over host.
func NewMetrics(host Observer) *Metrics {
	m := &Metrics{
		host: host, registry: prometheus.NewRegistry(), counted: map[relocation]bool{},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pagewarp_api_requests_total", Help: "API requests."}, []string{"route", "method", "code"}),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pagewarp_relocations_total", Help: "Ended relocations by outcome."}, []string{"role", "outcome"}),
	}
	for _, r := range []relocate.Role{relocate.RoleSource, relocate.RoleDestination} {
		for _, p := range []relocate.Phase{relocate.PhaseDone, relocate.PhaseRolledBack, relocate.PhaseLost} {
			m.outcomes.WithLabelValues(string(r), string(p)) // a rate needs the zero
		}
	}
	v := version.Get()
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pagewarp_build_info", Help: "1; the labels say which build this is.",
		ConstLabels: prometheus.Labels{"version": v.Version, "commit": v.Commit, "go": v.Go},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m, m.requests, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves the registry.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, Timeout: 10 * time.Second, EnableOpenMetrics: true, Registry: m.registry,
	})
}

// ServeTCP is the handler of the optional TCP address: /metrics alone.
func (m *Metrics) ServeTCP() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	return mux
}

func (m *Metrics) request(route, method string, code int) {
	switch method {
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete:
	default:
		method = "other" // the label's values must not be a client's choice
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(code)).Inc()
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descPhase, descPages, descEarly, descSaved, descGuest, descWire, descRate, descFault, descStage, descPaced, descChannels, descReconnects, descConnected, descDowntime,
		descReads, descReadBytes, descInPlace, descMessages, descMsgBytes, descSendTime, descTCPFetches, descFallbacks, descRDMAUp, descRegistered} {
		ch <- d
	}
	m.outcomes.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	sts := m.host.Statuses()
	m.count(sts)
	m.outcomes.Collect(ch)
	latest := map[relocation]relocate.Status{}
	for _, s := range sts {
		latest[key(s)] = s // oldest first: a name seen twice would void the scrape
	}
	for k, s := range latest {
		collect(ch, k, s)
	}
}

// count enters ended relocations into the outcomes, each once.
func (m *Metrics) count(sts []relocate.Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := make(map[relocation]bool, len(sts))
	for _, s := range sts {
		k := key(s)
		if !s.Phase.Final() || now[k] {
			continue
		}
		now[k] = true
		if !m.counted[k] {
			m.outcomes.WithLabelValues(string(s.Role), string(s.Phase)).Inc()
		}
	}
	m.counted = now
}

// Watch counts outcomes as they happen, so that none is missed between two
// scrapes, until stop is closed.
func (m *Metrics) Watch(stop <-chan struct{}) {
	evs, cancel := m.host.Subscribe(0)
	defer cancel()
	for {
		select {
		case e, ok := <-evs:
			if !ok {
				return
			}
			if e.Phase.Final() {
				m.count(m.host.Statuses())
			}
		case <-stop:
			return
		}
	}
}

func key(s relocate.Status) relocation { return relocation{s.VM, s.Session, s.Role} }

func collect(ch chan<- prometheus.Metric, k relocation, s relocate.Status) {
	value := func(t prometheus.ValueType) func(*prometheus.Desc, float64, ...string) {
		return func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, t, v, append([]string{k.vm, string(k.role), k.session}, labels...)...)
		}
	}
	gauge, counter := value(prometheus.GaugeValue), value(prometheus.CounterValue)
	gauge(descPhase, 1, string(s.Phase))
	for class, n := range map[string]uint64{
		"demand": s.PagesDemand, "precache": s.PagesPrecache, "zero": s.PagesZero, "same": s.PagesSame, "moved": s.PagesMoved, "reserved": s.PagesReserved, "remaining": s.PagesRemaining, "total": s.PagesTotal,
	} {
		gauge(descPages, float64(n), class)
	}
	counter(descSaved, float64(s.BytesSaved))
	counter(descEarly, float64(s.BytesPreTransfer))
	counter(descGuest, float64(s.BytesGuest))
	counter(descWire, float64(s.BytesWire))
	counter(descPaced, float64(s.DemandPaced))
	counter(descReconnects, float64(s.Reconnects))
	if r := s.RDMA; r != nil {
		device := r.Device + ":" + strconv.Itoa(r.Port)
		counter(descReads, float64(r.ReadsPosted), device, "posted")
		counter(descReads, float64(r.ReadsCompleted), device, "completed")
		counter(descReads, float64(r.ReadsRetried), device, "retried")
		counter(descReadBytes, float64(r.ReadBytes), device)
		counter(descMessages, float64(r.Messages), device)
		counter(descMsgBytes, float64(r.MessageBytes), device)
		counter(descSendTime, r.SendBuildMS/1e3, device, "build")
		counter(descSendTime, r.SendWaitMS/1e3, device, "wait")
		counter(descInPlace, float64(r.PagesInPlace), device)
		counter(descTCPFetches, float64(r.TCPFetches), device)
		counter(descFallbacks, float64(r.Fallbacks), device)
		gauge(descRDMAUp, float64(r.ChannelsUp), device)
		gauge(descRegistered, float64(r.Registered), device)
	}
	if !s.Phase.Final() { // a session that is over has no channels that could be up or down
		up := 0.
		if s.Connected {
			up = 1
		}
		gauge(descConnected, up)
		gauge(descRate, s.RateBytes)
		gauge(descChannels, float64(s.ChannelsUp), "up")
		gauge(descChannels, float64(s.ChannelsTotal), "agreed")
	}
	if s.DowntimeMS > 0 {
		gauge(descDowntime, s.DowntimeMS/1e3)
	}
	summary := func(d *prometheus.Desc, l relocate.Latency, labels ...string) {
		if l.Count < 0 {
			return
		}
		var q map[float64]float64
		if l.Count > 0 { // quantiles of nothing are not 0
			q = map[float64]float64{0.5: l.P50 / 1e6, 0.99: l.P99 / 1e6, 0.999: l.P999 / 1e6, 1: l.Max / 1e6}
		}
		ch <- prometheus.MustNewConstSummary(d, uint64(l.Count), l.Mean*float64(l.Count)/1e6, q, append([]string{k.vm, string(k.role), k.session}, labels...)...)
	}
	summary(descFault, s.FaultLatency)
	for stage, l := range s.Stages {
		summary(descStage, l, stage)
	}
}
