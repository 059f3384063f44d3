package daemon

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/cmd/internal/units"
	"github.com/pagewarp/pagewarp/relocate"
)

// minBandwidth is one page a second, in bytes: less never ends.
const minBandwidth = 4096

func (s *Server) version(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, s.info())
}

func (s *Server) machines(w http.ResponseWriter, r *http.Request) error {
	ms := s.host.Machines(r.Context())
	slices.SortFunc(ms, func(a, b relocate.Machine) int { return strings.Compare(a.Name, b.Name) })
	if ms == nil {
		ms = []relocate.Machine{}
	}
	return writeJSON(w, http.StatusOK, api.MachinesReply{VMs: ms})
}

func (s *Server) machine(w http.ResponseWriter, r *http.Request) error {
	name, err := machineName(r)
	if err != nil {
		return err
	}
	for _, m := range s.host.Machines(r.Context()) {
		if m.Name == name {
			return writeJSON(w, http.StatusOK, m)
		}
	}
	return fmt.Errorf("%s: %w", name, relocate.ErrUnknownMachine)
}

func (s *Server) add(w http.ResponseWriter, r *http.Request) error {
	var q api.AddRequest
	if err := readJSON(w, r, &q); err != nil {
		return err
	}
	if !config.ValidName(q.Name) {
		return badName(q.Name)
	}
	if !filepath.IsAbs(q.QMP) {
		return api.Errorf(api.CodeBadRequest, "it is what stands after -qmp unix: on QEMU's command line", "QMP socket %q must be an absolute path", clip(q.QMP))
	}
	if s.stopping.Load() {
		return errStopping()
	}
	m, err := s.host.Adopt(r.Context(), q.Name, filepath.Clean(q.QMP))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, m)
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request) error {
	name, err := machineName(r)
	if err == nil {
		err = s.host.Forget(name)
	}
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (s *Server) cache(w http.ResponseWriter, _ *http.Request) error {
	es, err := s.host.Cache()
	if err != nil {
		return err
	}
	if es == nil {
		es = []relocate.CacheEntry{}
	}
	c := s.config.Load().Cache
	return writeJSON(w, http.StatusOK, api.CacheReply{Dir: c.Dir, Limit: c.Bytes(), Entries: es})
}

func (s *Server) cacheDrop(w http.ResponseWriter, r *http.Request) error {
	name, err := machineName(r)
	if err == nil {
		err = s.host.CacheDrop(name)
	}
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (s *Server) relocate(w http.ResponseWriter, r *http.Request) error {
	name, err := machineName(r)
	if err != nil {
		return err
	}
	var q api.RelocateRequest
	if err := readJSON(w, r, &q); err != nil {
		return err
	}
	cfg := s.config.Load()
	if err := checkRequest(*cfg, &q); err != nil {
		return err
	}
	if s.stopping.Load() {
		return errStopping()
	}
	st, err := s.host.Relocate(r.Context(), name, q.To, q.Options)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusAccepted, st)
}

// checkRequest refuses what cannot be and fills in the configured defaults.
func checkRequest(cfg config.Config, q *api.RelocateRequest) error {
	if err := config.CheckPeer(q.To); err != nil {
		return api.Errorf(api.CodeBadRequest, "", "to: %v", err)
	}
	if err := cfg.Clear(q.To); err != nil {
		return api.Errorf(api.CodeClearText, "make certificates with `pagewarp pki init` and `pagewarp pki issue NAME` and set [tls], or start both daemons with --insecure on a network that nobody else uses", "%v", err)
	}
	o := &q.Options
	if o.Codec == "" {
		o.Codec = cfg.Relocate.Codec
	}
	if !slices.Contains(config.Codecs, o.Codec) {
		return api.Errorf(api.CodeBadRequest, "choose one of "+strings.Join(config.Codecs, ", "), "codec %q is unknown", clip(o.Codec))
	}
	if o.FaultSource != "" && !slices.Contains(relocate.FaultSources, o.FaultSource) {
		return api.Errorf(api.CodeBadRequest, "choose one of "+strings.Join(relocate.FaultSources, ", "), "fault_source %q is unknown", clip(o.FaultSource))
	}
	if o.Transport != "" && !slices.Contains(relocate.Transports, o.Transport) {
		return api.Errorf(api.CodeBadRequest, "choose one of "+strings.Join(relocate.Transports, ", "), "transport %q is unknown", clip(o.Transport))
	}
	if o.RDMAPin != "" && !slices.Contains(relocate.RDMAPins, o.RDMAPin) {
		return api.Errorf(api.CodeBadRequest, "choose one of "+strings.Join(relocate.RDMAPins, ", "), "rdma_pin %q is unknown", clip(o.RDMAPin))
	}
	if o.RDMAPrecache != "" && !slices.Contains(relocate.RDMAPrecaches, o.RDMAPrecache) {
		return api.Errorf(api.CodeBadRequest, "choose one of "+strings.Join(relocate.RDMAPrecaches, ", "), "rdma_precache %q is unknown", clip(o.RDMAPrecache))
	}
	if o.RDMALost != "" && !slices.Contains(relocate.RDMALosts, o.RDMALost) {
		return api.Errorf(api.CodeBadRequest, "choose one of "+strings.Join(relocate.RDMALosts, ", "), "rdma_lost %q is unknown", clip(o.RDMALost))
	}
	if o.RDMALand != "" && !slices.Contains(relocate.RDMALands, o.RDMALand) {
		return api.Errorf(api.CodeBadRequest, "choose one of "+strings.Join(relocate.RDMALands, ", "), "rdma_land %q is unknown", clip(o.RDMALand))
	}
	if o.Precache != "" {
		if err := relocate.CheckPolicies(strings.Split(o.Precache, ",")); err != nil {
			return api.Errorf(api.CodeBadRequest, "", "%v", err)
		}
	}
	if o.Warm != "" && !filepath.IsAbs(o.Warm) && !config.ValidName(o.Warm) {
		return api.Errorf(api.CodeBadRequest, "write the name of a machine, or the absolute path of a file at the destination", "warm %q", clip(o.Warm))
	}
	switch {
	case q.NoCap && o.Bandwidth != 0:
		return api.Errorf(api.CodeBadRequest, "", "no_cap and a bandwidth of %d exclude each other", o.Bandwidth)
	case !q.NoCap && o.Bandwidth == 0:
		o.Bandwidth = int64(cfg.Relocate.Bandwidth)
	}
	if err := checkBandwidth(o.Bandwidth); err != nil {
		return err
	}
	o.DemandChannels = cmp.Or(o.DemandChannels, cfg.Relocate.DemandChannels)
	o.PrecacheChannels = cmp.Or(o.PrecacheChannels, cfg.Relocate.PrecacheChannels)
	for _, n := range []int{o.DemandChannels, o.PrecacheChannels} {
		if n < 0 || n > config.MaxChannels {
			return api.Errorf(api.CodeBadRequest, "", "%d channels; allowed are 0 (automatic) to %d of each class", n, config.MaxChannels)
		}
	}
	return nil
}

func checkBandwidth(n int64) error {
	if n < 0 || n > 0 && n < minBandwidth {
		return api.Errorf(api.CodeBadRequest, "0 lifts the cap", "a bandwidth of %d bytes per second; at least %d are needed to move a page a second", n, minBandwidth)
	}
	return nil
}

func (s *Server) cancel(w http.ResponseWriter, r *http.Request) error {
	name, err := machineName(r)
	if err == nil {
		err = s.host.Cancel(r.Context(), name)
	}
	if err == nil {
		w.WriteHeader(http.StatusAccepted)
	}
	return err
}

func (s *Server) bandwidth(w http.ResponseWriter, r *http.Request) error {
	name, err := machineName(r)
	if err != nil {
		return err
	}
	var q api.BandwidthRequest
	if err := readJSON(w, r, &q); err != nil {
		return err
	}
	if err := checkBandwidth(q.BytesPerSecond); err != nil {
		return err
	}
	if err := s.host.SetBandwidth(name, q.BytesPerSecond); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) limits(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, api.Limits{
		HostBandwidth: s.host.HostBandwidth(), Configured: int64(s.config.Load().Relocate.HostBandwidth),
	})
}

func (s *Server) setLimits(w http.ResponseWriter, r *http.Request) error {
	var q api.LimitsRequest
	if err := readJSON(w, r, &q); err != nil {
		return err
	}
	if n := q.HostBandwidth; n != nil {
		if err := config.CheckHostBandwidth(units.Rate(*n)); err != nil {
			return api.Errorf(api.CodeBadRequest, "0 lifts the cap", "host_bandwidth: %v", err)
		}
		s.host.SetHostBandwidth(*n)
		s.log.Info("cap of the host changed by the operator", "host_bandwidth", units.Rate(*n))
	}
	return s.limits(w, r)
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) error {
	vm := r.URL.Query().Get("vm")
	if vm != "" && !config.ValidName(vm) {
		return badName(vm)
	}
	out := api.StatusReply{Daemon: s.info(), Relocations: []relocate.Status{}}
	for _, st := range s.host.Statuses() {
		if vm == "" || st.VM == vm {
			out.Relocations = append(out.Relocations, st)
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

func (s *Server) serveMetrics(w http.ResponseWriter, r *http.Request) error {
	s.metrics.Handler().ServeHTTP(w, r)
	return nil
}

// quiet ends an answer without follow: the host sends what it has at once, so
// that a pause of this length means that there is no more.
const quiet = 100 * time.Millisecond

func (s *Server) events(w http.ResponseWriter, r *http.Request) error {
	var after uint64
	q := r.URL.Query()
	if v := q.Get("after"); v != "" {
		var err error
		if after, err = strconv.ParseUint(v, 10, 64); err != nil {
			return api.Errorf(api.CodeBadRequest, "", "after=%q is no event number", clip(v))
		}
	}
	follow, err := strconv.ParseBool(cmp.Or(q.Get("follow"), "0"))
	if err != nil {
		return api.Errorf(api.CodeBadRequest, "", "follow=%q; write 0 or 1", clip(q.Get("follow")))
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{}) // unsupported only in tests
	evs, cancel := s.host.Subscribe(after)
	defer cancel()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	silence := s.Heartbeat
	if !follow {
		silence = quiet
	}
	enc := json.NewEncoder(w)
	send := func(v any) bool {
		rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // unsupported only in tests
		return enc.Encode(v) == nil && rc.Flush() == nil
	}
	if rc.Flush() != nil {
		return nil
	}
	timer := time.NewTimer(silence)
	defer timer.Stop()
	for {
		select {
		case e, ok := <-evs:
			if !ok || !send(e) {
				return nil
			}
		case <-timer.C:
			if !follow || !send(heartbeat{api.KindHeartbeat, time.Now()}) {
				return nil
			}
		case <-r.Context().Done():
			return nil
		case <-s.stop:
			return nil
		}
		timer.Reset(silence)
	}
}

type heartbeat struct {
	Kind string    `json:"kind"`
	Time time.Time `json:"time"`
}

func errStopping() error {
	return api.Errorf(api.CodeStopping, "try again when it runs again", "the daemon is stopping")
}
