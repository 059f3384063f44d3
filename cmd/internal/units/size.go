package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ParseSize reads a byte size: "512M", "2G", "2GiB" are powers of 1024, as
// memory is counted; "2GB" is 2·10⁹. The result is in bytes.
func ParseSize(s string) (int64, error) {
	n, unit, err := splitNumber(strings.TrimSpace(s))
	if err != nil {
		return 0, fmt.Errorf("size %q: %w; write it like 512M or 2G", s, err)
	}
	u := strings.ToLower(unit)
	bare := strings.TrimSuffix(u, "b")
	f, ok := prefixes[bare]
	if !ok {
		return 0, fmt.Errorf("size %q: unknown unit %q; write it like 512M or 2G", s, unit)
	}
	// Without the B the prefix means what it means for memory: 1024.
	if bare == u && len(bare) == 1 {
		f = prefixes[bare+"i"]
	}
	if n*f > math.MaxInt64/2 {
		return 0, fmt.Errorf("size %q is more than any machine has", s)
	}
	return int64(n * f), nil
}

// FormatSize writes a byte count with a power-of-1024 unit and three digits.
func FormatSize(n uint64) string {
	v := float64(n)
	for _, p := range []struct {
		f float64
		s string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if v >= p.f {
			return three(v/p.f) + " " + p.s
		}
	}
	return fmt.Sprintf("%d B", n)
}

// Size is a byte size as a flag and in files: what ParseSize reads.
type Size int64

// String writes the size as a plain number of bytes, which every reader takes.
func (s Size) String() string { return strconv.FormatInt(int64(s), 10) }

// Set implements pflag.Value; an empty size is 0.
func (s *Size) Set(text string) error { return s.UnmarshalText([]byte(text)) }

// Type implements pflag.Value.
func (*Size) Type() string { return "SIZE" }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) error {
	if len(b) == 0 || string(b) == "0" {
		*s = 0
		return nil
	}
	n, err := ParseSize(string(b))
	if err == nil {
		*s = Size(n)
	}
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
