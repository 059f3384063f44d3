package guestapi

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
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
}

// DefaultConfig returns the values used for parameters that are not given.
func DefaultConfig() Config {
	return Config{Port: 80, WorkingSetMiB: 256, ChurnRate: 0, Incompressible: 0.5}
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
	default:
		err = fmt.Errorf("unknown; known are ip, gw, port, ws_mib, churn_rate, half, touch")
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

// TouchBin is one element of the answer to GET /touches: the touches in the
// 100 ms that end TNS nanoseconds after init started.
type TouchBin struct {
	TNS int64  `json:"t_ns"`
	N   uint64 `json:"n"`
}
