package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/units"

	"github.com/pagewarp/pagewarp/relocate"
)

// Name is what machines may be called: the name becomes part of file names and
// of URLs.
var Name = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// ValidName reports whether s can name a machine.
func ValidName(s string) bool { return Name.MatchString(s) && s != "." && s != ".." }

// Codecs are the names of the precache codec policies.
var Codecs = []string{"auto", "none", "s2", "zstd"}

// maxDemandPace keeps a machine that does nothing but fault alive: it has some hundred
// faults a second at least.
const maxDemandPace = 10 * time.Millisecond

// maxReserve leaves the source's patience with a destination that prepares alone.
const maxReserve = 20 * time.Second

// maxAwake bounds for how long a typing error heats a host.
const maxAwake = 10 * time.Minute

// MaxChannels bounds the channels of one class that an operator may ask for.
const MaxChannels = 64

// MinHostBandwidth is the least cap of a host, in bytes per second: with less, the
// pause after an answer could be taken for a dead channel.
const MinHostBandwidth = 1e6

// CheckHostBandwidth checks a cap of a host.
func CheckHostBandwidth(n units.Rate) error {
	if n < 0 || n > 0 && n < MinHostBandwidth {
		return fmt.Errorf("%s; allowed are 0 (no cap) and 8M or more", n)
	}
	return nil
}

// Validate checks what can be checked without touching the system. All
// mistakes are reported at once.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if !filepath.IsAbs(c.StateDir) {
		bad("state_dir %q must be an absolute path", c.StateDir)
	}
	if s := c.Socket(); !filepath.IsAbs(s) {
		bad("api.socket %q must be an absolute path", s)
	} else if len(s) > maxUnixPath {
		bad("api.socket %q is longer than %d bytes, the limit of a unix socket; choose a shorter state_dir or api.socket", s, maxUnixPath)
	}
	if c.TLS.Enabled() {
		for _, f := range []struct{ key, path string }{{"tls.ca", c.TLS.CA}, {"tls.cert", c.TLS.Cert}, {"tls.key", c.TLS.Key}} {
			if f.path == "" {
				bad("%s is missing; mutual TLS needs tls.ca, tls.cert and tls.key (`pagewarp pki issue NAME` prints the lines)", f.key)
			}
		}
		if c.Insecure {
			bad("insecure and [tls] exclude each other; remove one")
		}
	} else if len(c.TLS.Peers) > 0 {
		bad("tls.peers without certificates protects nothing; set tls.ca, tls.cert and tls.key")
	}
	for _, a := range c.Listeners() {
		if err := c.checkListen(a); err != nil {
			errs = append(errs, err)
		}
	}
	if c.Metrics.Listen != "" {
		if _, _, err := splitAddr(c.Metrics.Listen); err != nil {
			bad("metrics.listen: %w", err)
		}
	}
	if _, err := ParseLevel(c.Log.Level); err != nil {
		errs = append(errs, err)
	}
	if !slices.Contains([]string{"auto", "text", "json"}, c.Log.Format) {
		bad("log.format %q; choose auto, text or json", c.Log.Format)
	}
	if !slices.Contains(Codecs, c.Relocate.Codec) {
		bad("relocate.codec %q; choose one of %s", c.Relocate.Codec, strings.Join(Codecs, ", "))
	}
	if err := CheckHostBandwidth(c.Relocate.HostBandwidth); err != nil {
		bad("relocate.host_bandwidth %w", err)
	}
	for _, n := range []struct {
		key      string
		val, max int
	}{
		{"relocate.demand_channels", c.Relocate.DemandChannels, MaxChannels},
		{"relocate.precache_channels", c.Relocate.PrecacheChannels, MaxChannels},
		{"engine.gomaxprocs", c.Engine.GOMAXPROCS, 4096},
		{"engine.fault_readers", c.Engine.FaultReaders, 64},
	} {
		if n.val < 0 || n.val > n.max {
			bad("%s = %d; allowed are 0 (automatic) to %d", n.key, n.val, n.max)
		}
	}
	if _, err := units.ParseSize(c.Cache.Size); err != nil {
		bad("cache.size: %w", err)
	}
	for _, dir := range append([]string{c.Cache.Dir}, c.Cache.Allow...) {
		if !filepath.IsAbs(dir) {
			bad("cache: directory %q must be an absolute path", dir)
		}
	}
	if c.ShutdownTimeout <= 0 {
		bad("shutdown_timeout must be positive")
	}
	if !slices.Contains(relocate.FaultSources, c.Engine.FaultSource) {
		bad("engine.fault_source %q; choose one of %s", c.Engine.FaultSource, strings.Join(relocate.FaultSources, ", "))
	}
	if !slices.Contains(relocate.RDMAPolicies, c.RDMA.Policy) {
		bad("rdma.policy %q; choose one of %s", c.RDMA.Policy, strings.Join(relocate.RDMAPolicies, ", "))
	}
	if c.Engine.FaultLog != "" && !filepath.IsAbs(c.Engine.FaultLog) {
		bad("engine.fault_log %q must be an absolute path", c.Engine.FaultLog)
	}
	if c.Engine.Spin < 0 {
		bad("engine.spin must not be negative")
	}
	if p := time.Duration(c.Engine.DemandPace); p < 0 || p > maxDemandPace {
		bad("engine.demand_pace %v; choose from 0s (faults never wait) to %v", p, maxDemandPace)
	}
	if r := time.Duration(c.Engine.Reserve); r < 0 || r > maxReserve {
		bad("engine.reserve %v; choose from 0s (no memory is reserved) to %v", r, maxReserve)
	}
	if a := time.Duration(c.Engine.Awake); a < 0 || a > maxAwake {
		bad("engine.awake %v; choose from 0s (the CPUs may sleep as they like) to %v", a, maxAwake)
	}
	for name, t := range c.Templates {
		if name != "*" && !ValidName(name) {
			bad("templates.%q is no machine name; use letters, digits, '.', '_', '-', or \"*\" for all", name)
		}
		if t.Binary != "" && !filepath.IsAbs(t.Binary) {
			bad("templates.%q.binary %q must be an absolute path", name, t.Binary)
		}
		for _, r := range t.Rewrite {
			if r.From == "" || r.To == "" {
				bad("templates.%q.rewrite needs both from and to", name)
			}
		}
	}
	return errors.Join(errs...)
}

// maxUnixPath is the longest sun_path with its final NUL left out; unix(7).
const maxUnixPath = 107

func (c Config) checkListen(a string) error {
	network, host, err := splitAddr(a)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if network == "unix" || c.TLS.Enabled() || c.Insecure || Loopback(host) {
		return nil
	}
	return fmt.Errorf("listen %q can be reached from other hosts, and no certificates are configured; "+
		"make them with `pagewarp pki init` and `pagewarp pki issue NAME` and set [tls], "+
		"or listen on 127.0.0.1:%s, or accept clear text with --insecure", a, Port)
}

// Clear reports whether guest memory may go to the peer address to under this
// configuration; the error says what to do.
func (c Config) Clear(to string) error {
	network, host, err := splitAddr(to)
	if err != nil {
		return err
	}
	if network == "unix" || c.TLS.Enabled() || c.Insecure || Loopback(host) {
		return nil
	}
	return fmt.Errorf("peer %q is another host, and this daemon has no certificates: guest memory would travel in clear text", to)
}

// splitAddr takes an address apart into network ("tcp" or "unix") and host (or
// path).
func splitAddr(a string) (network, host string, err error) {
	if p, ok := strings.CutPrefix(a, "unix:"); ok {
		if !filepath.IsAbs(p) || len(p) > maxUnixPath {
			return "", "", fmt.Errorf("address %q: the path after unix: must be absolute and at most %d bytes", a, maxUnixPath)
		}
		return "unix", p, nil
	}
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return "", "", fmt.Errorf("address %q: write host:port (the usual port is %s), [v6]:port or unix:/path", a, Port)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 && host == "" {
		return "", "", fmt.Errorf("address %q: port %q is not a number from 1 to 65535", a, port)
	}
	return "tcp", host, nil
}

// CheckPeer reports whether to can be the address of another daemon.
func CheckPeer(to string) error {
	network, host, err := splitAddr(to)
	if err != nil {
		return err
	}
	if network == "tcp" && host == "" {
		return fmt.Errorf("address %q has no host; write host:port (the usual port is %s)", to, Port)
	}
	return nil
}

// Loopback reports whether only this host can reach host. An empty host is
// every interface.
func Loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// ParseLevel reads a log level.
func ParseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("log level %q; choose debug, info, warn or error", s)
}
