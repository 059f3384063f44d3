package engine

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/pagewarp/pagewarp/bench/workloads"
	"github.com/pagewarp/pagewarp/internal/words"
)

// Suggest returns "did you mean X? " for the candidate nearest to text, or ""
// if none is near.
func Suggest(text string, candidates []string) string {
	best, at := "", len(text)/2+1
	for _, c := range candidates {
		if d := words.Distance(strings.ToLower(text), c); d < at {
			best, at = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %s? ", best)
}

// touchAlias is what the guest calls random.
const touchAlias = "touch"

// ParseLoad reads a load as workloads.Parse does; touch is another name of
// random.
func ParseLoad(text string) (workloads.Load, error) {
	kind, params, given := strings.Cut(text, ":")
	names := []string{touchAlias}
	known := kind == touchAlias
	for _, k := range workloads.Kinds() {
		names = append(names, k.Name)
		known = known || k.Name == kind
	}
	if !known {
		return workloads.Load{}, fmt.Errorf("load %q: %schoose from %s", kind, Suggest(kind, names), strings.Join(names, ", "))
	}
	if kind == touchAlias {
		if text = "random"; given {
			text += ":" + params
		}
	}
	return workloads.Parse(text)
}

// ParseRAM reads a size of memory such as 512M or 4G, in units of 1024, and
// returns bytes.
func ParseRAM(text string) (uint64, error) {
	n, err := parseScaled(text, 1024)
	const low, high = 128 << 20, 1 << 40
	if err != nil || n < low || n > high || n != math.Trunc(n) || uint64(n)%(2<<20) != 0 {
		return 0, fmt.Errorf("memory of %q: give a size such as 512M or 4G, from 128M to 1024G, in steps of 2 MiB", text)
	}
	return uint64(n), nil
}

// ParseLink reads a link's rate in bits per second, such as 1G or 100M, in
// units of 1000, or none, and returns bytes per second.
func ParseLink(text string) (uint64, error) {
	if text == "none" {
		return 0, nil
	}
	n, err := parseScaled(text, 1000)
	if err != nil || n < 1e6 || n > 400e9 {
		return 0, fmt.Errorf("link of %q: give a rate in bits per second such as 100M, 1G or 10G, up to 400G, or none", text)
	}
	return uint64(n / 8), nil
}

func parseScaled(text string, unit float64) (float64, error) {
	factor := 1.0
	if text != "" {
		if i := strings.IndexByte("KMGT", text[len(text)-1]); i >= 0 {
			factor, text = math.Pow(unit, float64(i+1)), text[:len(text)-1]
		}
	}
	n, err := strconv.ParseFloat(text, 64)
	if err == nil && (math.IsNaN(n) || n <= 0) {
		err = strconv.ErrRange
	}
	return n * factor, err
}
