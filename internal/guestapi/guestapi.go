package guestapi

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Lines the guest prints on its console, each followed by key=value fields.
const (
	// ReadyLine is printed once, when the web server answers.
	ReadyLine = "PAGEWARP-GUEST-READY"
	// BadPageLine is printed for a page that failed its check.
	BadPageLine = "PAGEWARP-BAD-PAGE"
	// FailLine is printed when init cannot go on; the guest then powers off.
	FailLine = "PAGEWARP-GUEST-FAILED"
)

// ChecksumHeader carries the CRC-32C (Castagnoli) of the body of a /page
// answer, as eight hexadecimal digits.
const ChecksumHeader = "X-Pagewarp-Crc32c"

// BaseCmdline is what every test guest's kernel is started with: console on
// the serial port, and a panic ends the QEMU that was started with -no-reboot.
const BaseCmdline = "console=ttyS0 quiet panic=-1"

// Config is what the guest's init reads from the kernel command line.
type Config struct {
	// IP is the address of eth0 with its prefix length.
	IP netip.Prefix
	// Gateway is the default route; the zero value means none.
	Gateway netip.Addr
	// Port is the TCP port of the web server.
	Port int
	// WorkingSetMiB is the size of the working set in MiB.
	WorkingSetMiB int
	// ChurnRate is how many pages a second are verified and rewritten:
	// 0 is as fast as it goes with pauses, negative is none.
	ChurnRate int
	// Incompressible is the share of each page's payload, 0 to 1, that no
	// codec can shrink.
	Incompressible float64
	// Touch turns on the random-touch mode, which /touches reports.
	Touch bool
	// Load is what the guest does besides answering: "" is as the fields above
	// say, any other is one of Loads, and then Touch has no meaning and
	// ChurnRate only for LoadChurn.
	Load string
	// ZipfExponent is of LoadZipf, above 1.
	ZipfExponent float64
	// Sessions and Scale are of the SPECweb-style loads, TLSPort is their
	// second port.
	Sessions int
	Scale    float64
	TLSPort  int
	// Front is "" or FrontNginx: what stands before the guest's web server.
	Front string
}

// Loads of the guest. bench/workloads says what each does.
const (
	LoadRandom    = "random"
	LoadSweep     = "sweep"
	LoadZipf      = "zipf"
	LoadChurn     = "churn"
	LoadIdle      = "idle"
	LoadRedis     = "redis"
	LoadBanking   = "specweb-banking"
	LoadEcommerce = "specweb-ecommerce"
	LoadSupport   = "specweb-support"

	// SPECwebPrefix begins the names of the SPECweb-style loads.
	SPECwebPrefix = "specweb-"
	// FrontNginx puts nginx before the web server.
	FrontNginx = "nginx"
	// RedisPort is where LoadRedis listens.
	RedisPort = 6379
)

// Loads lists the loads.
func Loads() []string {
	return []string{LoadRandom, LoadSweep, LoadZipf, LoadChurn, LoadIdle, LoadRedis, LoadBanking, LoadEcommerce, LoadSupport}
}

// DefaultConfig returns the values used for parameters that are not given.
func DefaultConfig() Config {
	return Config{Port: 80, WorkingSetMiB: 256, ChurnRate: 0, Incompressible: 0.5, ZipfExponent: 1.1, Sessions: 50, Scale: 0.05, TLSPort: 443}
}

// Cmdline renders c as kernel parameters, to be appended to BaseCmdline.
func (c Config) Cmdline() string {
	var b strings.Builder
	fmt.Fprintf(&b, "pw.ip=%s", c.IP)
	if c.Gateway.IsValid() {
		fmt.Fprintf(&b, " pw.gw=%s", c.Gateway)
	}
	fmt.Fprintf(&b, " pw.port=%d pw.ws_mib=%d pw.churn_rate=%d pw.half=%g", c.Port, c.WorkingSetMiB, c.ChurnRate, c.Incompressible)
	if c.Touch {
		b.WriteString(" pw.touch=1")
	}
	if c.Load != "" {
		fmt.Fprintf(&b, " pw.load=%s", c.Load)
	}
	if c.Load == LoadZipf {
		fmt.Fprintf(&b, " pw.zipf=%g", c.ZipfExponent)
	}
	if strings.HasPrefix(c.Load, SPECwebPrefix) {
		fmt.Fprintf(&b, " pw.sessions=%d pw.scale=%g pw.tls_port=%d", c.Sessions, c.Scale, c.TLSPort)
	}
	if c.Front != "" {
		fmt.Fprintf(&b, " pw.front=%s", c.Front)
	}
	return b.String()
}

// ParseCmdline reads the pw.* parameters of a kernel command line. Parameters
// of others are ignored; an unknown or malformed pw.* parameter is an error,
// because a misspelt one would silently measure something else.
func ParseCmdline(cmdline string) (Config, error) {
	c := DefaultConfig()
	for _, field := range strings.Fields(cmdline) {
		key, ok := strings.CutPrefix(field, "pw.")
		if !ok {
			continue
		}
		key, value, _ := strings.Cut(key, "=")
		if err := c.set(key, value); err != nil {
			return Config{}, fmt.Errorf("kernel parameter %s: %w", field, err)
		}
	}
	return c, c.validate()
}

func (c *Config) set(key, value string) (err error) {
	switch key {
	case "ip":
		c.IP, err = netip.ParsePrefix(value)
	case "gw":
		c.Gateway, err = netip.ParseAddr(value)
	case "port":
		c.Port, err = strconv.Atoi(value)
	case "ws_mib":
		c.WorkingSetMiB, err = strconv.Atoi(value)
	case "churn_rate":
		c.ChurnRate, err = strconv.Atoi(value)
	case "half":
		c.Incompressible, err = strconv.ParseFloat(value, 64)
	case "touch":
		c.Touch, err = strconv.ParseBool(value)
	case "load":
		c.Load = value
	case "zipf":
		c.ZipfExponent, err = strconv.ParseFloat(value, 64)
	case "sessions":
		c.Sessions, err = strconv.Atoi(value)
	case "scale":
		c.Scale, err = strconv.ParseFloat(value, 64)
	case "tls_port":
		c.TLSPort, err = strconv.Atoi(value)
	case "front":
		c.Front = value
	default:
		err = fmt.Errorf("unknown; known are ip, gw, port, ws_mib, churn_rate, half, touch, load, zipf, sessions, scale, tls_port, front")
	}
	return err
}

func (c *Config) validate() error {
	switch {
	case !c.IP.IsValid():
		return fmt.Errorf("kernel parameter pw.ip is missing: give it as pw.ip=10.77.0.9/24")
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("kernel parameter pw.port=%d: not a TCP port", c.Port)
	case c.WorkingSetMiB < 1 || c.WorkingSetMiB > 1<<20:
		return fmt.Errorf("kernel parameter pw.ws_mib=%d: want 1 to %d MiB", c.WorkingSetMiB, 1<<20)
	case math.IsNaN(c.Incompressible) || c.Incompressible < 0 || c.Incompressible > 1:
		return fmt.Errorf("kernel parameter pw.half=%g: want a share from 0 to 1", c.Incompressible)
	case c.Load != "" && !slices.Contains(Loads(), c.Load):
		return fmt.Errorf("kernel parameter pw.load=%s: want one of %s", c.Load, strings.Join(Loads(), ", "))
	case !(c.ZipfExponent > 1 && c.ZipfExponent <= 10):
		return fmt.Errorf("kernel parameter pw.zipf=%g: want an exponent above 1, and 10 at most", c.ZipfExponent)
	case c.Sessions < 1 || c.Sessions > 100_000:
		return fmt.Errorf("kernel parameter pw.sessions=%d: want 1 to 100000", c.Sessions)
	case !(c.Scale > 0 && c.Scale <= 1):
		return fmt.Errorf("kernel parameter pw.scale=%g: want a factor above 0, and 1 at most", c.Scale)
	case c.TLSPort < 1 || c.TLSPort > 65535 || c.TLSPort == c.Port:
		return fmt.Errorf("kernel parameter pw.tls_port=%d: want a TCP port other than pw.port=%d", c.TLSPort, c.Port)
	case c.Front != "" && c.Front != FrontNginx:
		return fmt.Errorf("kernel parameter pw.front=%s: want %s or none", c.Front, FrontNginx)
	}
	return nil
}

// Stats is the answer to GET /stats.
type Stats struct {
	// Pages is the number of 4 KiB pages of the working set.
	Pages uint64 `json:"pages"`
	// Checks counts pages verified, by the web server, the churn and /verify.
	Checks uint64 `json:"checks"`
	// Rewrites counts pages rewritten with the next generation.
	Rewrites uint64 `json:"rewrites"`
	// Touches counts touches of the random-touch mode.
	Touches uint64 `json:"touches"`
	// Requests counts /page answers.
	Requests uint64 `json:"requests"`
	// BadPages counts failed checks; it never goes back.
	BadPages uint64 `json:"bad_pages"`
	// FirstBad says what the first failed check found.
	FirstBad string `json:"first_bad,omitempty"`
	// GenerationSum is the sum of the generations of all pages.
	GenerationSum uint64 `json:"generation_sum"`
	// UptimeNS is the monotonic time since init started, in ns.
	UptimeNS int64 `json:"uptime_ns"`
	// MemTotalBytes is what the guest's kernel has to give, in bytes.
	MemTotalBytes uint64 `json:"memtotal_bytes"`
}

// Verify is the answer to GET /verify: one pass over the whole working set.
type Verify struct {
	Pages uint64 `json:"pages"`
	// Bad is the number of pages that failed in this pass.
	Bad uint64 `json:"bad"`
	// TouchesMissing is how many touches the pages have lost against the
	// count kept outside of them; 0 when no stale page was installed.
	TouchesMissing int64 `json:"touches_missing"`
	// TookNS is how long the pass took, in ns.
	TookNS int64 `json:"took_ns"`
}

// TouchSpan is how far back the answer to GET /touches goes: a relocation that takes
// an hour and is watched for another is told from before its begin.
const TouchSpan = 3 * time.Hour

// TouchBin is one element of the answer to GET /touches: the touches in the
// 100 ms that end TNS nanoseconds after init started; or of a load that does
// something else, its operations: pages rewritten, ticks of an idle guest.
type TouchBin struct {
	TNS int64  `json:"t_ns"`
	N   uint64 `json:"n"`
}
