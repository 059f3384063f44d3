package units

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseRate(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Rate
	}{
		{"2G", 250_000_000}, {"2g", 250_000_000}, {"2Gbit/s", 250_000_000}, {"2 Gbit/s", 250_000_000},
		{"2Gbps", 250_000_000}, {"2Gb/s", 250_000_000}, {"2Gb", 250_000_000}, {"2Gbit", 250_000_000},
		{"250MB/s", 250_000_000}, {"250MB", 250_000_000}, {"250MBps", 250_000_000}, {"0.25GB/s", 250_000_000},
		{"100M", 12_500_000}, {"1.5G", 187_500_000}, {"512k", 64_000}, {"512K", 64_000}, {"1T", 125_000_000_000},
		{"1Gi", 1 << 27}, {"64MiB/s", 64 << 20}, {"64Mib/s", 8 << 20}, {"1000000", 125_000}, {"2G/s", 250_000_000},
		{"0", 0}, {"none", 0}, {"Unlimited", 0}, {"off", 0}, {"4096B/s", 4096},
	} {
		got, err := ParseRate(c.in)
		if err != nil || got != c.want {
			t.Errorf("ParseRate(%q) = %d, %v; want %d", c.in, got, err, c.want)
		}
	}
}

func TestParseRateErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":          "no number",
		"fast":      "no number",
		"-2G":       "no number",
		"2Q":        `unknown unit "Q"`,
		"2Gbytes":   "unknown unit",
		"1.2.3G":    "not a number",
		"2":         "did you mean 2M or 2G?",
		"32k":       "less than a page a second",
		"99999999T": "more than any link",
		"2G extra":  "unknown unit",
	} {
		if _, err := ParseRate(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseRate(%q): %v, want %q", in, err, want)
		}
	}
}

func TestRateText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Rate(rapid.Int64Range(minRate, 1<<50).Draw(t, "rate"))
		b, _ := r.MarshalText()
		var back Rate
		if err := back.UnmarshalText(b); err != nil || back != r {
			t.Fatalf("%d written as %s, read as %d (%v)", r, b, back, err)
		}
	})
}

func TestFormat(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Rate(0).String(), "no limit"}, {Rate(250_000_000).String(), "2 Gbit/s"},
		{Rate(187_500_000).String(), "1.5 Gbit/s"}, {FormatBits(12_345_678), "98.8 Mbit/s"},
		{FormatBits(1), "8 bit/s"}, {FormatSize(0), "0 B"}, {FormatSize(1 << 30), "1 GiB"},
		{FormatSize(1536 << 20), "1.5 GiB"}, {FormatSize(4096), "4 KiB"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"4096": 4096, "512M": 512 << 20, "2G": 2 << 30, "2GiB": 2 << 30, "2GB": 2e9, "1.5k": 1536, "1TiB": 1 << 40,
	} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "big", "2X", "99999999T"} {
		if _, err := ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) passed", in)
		}
	}
}
