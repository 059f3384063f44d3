package units

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Rate is a transfer rate in bytes per second; 0 is "no limit".
type Rate int64

// minRate is one 4 KiB page per second. Anything slower is a forgotten prefix
// ("2" for "2G"), and a drain at such a rate would never end.
const minRate = 4096

var prefixes = map[string]float64{
	"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12,
	"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40,
}

// rateUnits is ordered so that the longest suffix that fits is found first;
// only here the case of the letter b decides.
var rateUnits = []struct {
	suffix string
	bytes  float64 // of one unit
}{
	{"bit/s", 1. / 8}, {"bits/s", 1. / 8}, {"bps", 1. / 8}, {"b/s", 1. / 8}, {"bit", 1. / 8},
	{"B/s", 1}, {"Bps", 1}, {"B", 1}, {"b", 1. / 8}, {"/s", 1. / 8}, {"", 1. / 8},
}

// ParseRate reads a rate: "2G" and "2Gbit/s" are 2 Gbit/s, "250MB/s" and
// "250MB" are bytes per second, "Ki", "Mi", "Gi" are powers of 1024. "0",
// "none", "off" and "unlimited" mean no limit. Prefixes ignore case, the unit's
// b (bit) and B (byte) do not.
func ParseRate(s string) (Rate, error) {
	t := strings.TrimSpace(s)
	switch strings.ToLower(t) {
	case "0", "none", "off", "unlimited":
		return 0, nil
	}
	n, unit, err := splitNumber(t)
	if err != nil {
		return 0, fmt.Errorf("rate %q: %w; write it like 2G (2 Gbit/s), 500M or 250MB/s", s, err)
	}
	scale, ok := rateScale(unit)
	if !ok {
		return 0, fmt.Errorf("rate %q: unknown unit %q; write it like 2G (2 Gbit/s), 500M or 250MB/s", s, unit)
	}
	v := n * scale
	switch {
	case v > math.MaxInt64/2:
		return 0, fmt.Errorf("rate %q is more than any link carries", s)
	case v < minRate:
		return 0, fmt.Errorf("rate %q is %.0f B/s, less than a page a second; did you mean %sM or %sG?", s, v, trimZero(n), trimZero(n))
	}
	return Rate(math.Round(v)), nil
}

func rateScale(unit string) (float64, bool) {
	for _, u := range rateUnits {
		p, ok := strings.CutSuffix(unit, u.suffix)
		if !ok {
			continue
		}
		if f, ok := prefixes[strings.ToLower(strings.TrimSpace(p))]; ok {
			return f * u.bytes, true
		}
	}
	return 0, false
}

func splitNumber(s string) (float64, string, error) {
	i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if i < 0 {
		i = len(s)
	}
	if i == 0 {
		return 0, "", errors.New("no number in front")
	}
	n, err := strconv.ParseFloat(s[:i], 64)
	if err != nil {
		return 0, "", fmt.Errorf("%q is not a number", s[:i])
	}
	return n, strings.TrimSpace(s[i:]), nil
}

func trimZero(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// String writes the rate in bits per second, "no limit" for 0.
func (r Rate) String() string {
	if r == 0 {
		return "no limit"
	}
	return FormatBits(float64(r))
}

// FormatBits writes a rate given in bytes per second as bits per second with
// three significant digits.
func FormatBits(bytesPerSecond float64) string {
	v := bytesPerSecond * 8
	for _, p := range []struct {
		f float64
		s string
	}{{1e12, "Tbit/s"}, {1e9, "Gbit/s"}, {1e6, "Mbit/s"}, {1e3, "kbit/s"}} {
		if v >= p.f {
			return three(v/p.f) + " " + p.s
		}
	}
	return three(v) + " bit/s"
}

func three(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return trimZero(math.Round(v*10) / 10)
	}
	return trimZero(math.Round(v*100) / 100)
}

// UnmarshalText makes Rate usable in TOML.
func (r *Rate) UnmarshalText(b []byte) error {
	v, err := ParseRate(string(b))
	if err == nil {
		*r = v
	}
	return err
}

// MarshalText writes a form that ParseRate reads back to the same value.
func (r Rate) MarshalText() ([]byte, error) {
	if r == 0 {
		return []byte("0"), nil
	}
	return fmt.Appendf(nil, "%dB/s", int64(r)), nil
}

// Set and Type make *Rate a command line flag.
func (r *Rate) Set(s string) error { return r.UnmarshalText([]byte(s)) }

// Type names the value in help texts.
func (r *Rate) Type() string { return "RATE" }
