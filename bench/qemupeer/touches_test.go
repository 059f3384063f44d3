package qemupeer

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/internal/guestapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// binsOf lays bins of 100 ms end to end.
func binsOf(counts ...uint64) []guestapi.TouchBin {
	bins := make([]guestapi.TouchBin, len(counts))
	for i, n := range counts {
		bins[i] = guestapi.TouchBin{TNS: int64(i+1) * int64(100*time.Millisecond), N: n}
	}
	return bins
}

func repeat(n int, v uint64) []uint64 {
	c := make([]uint64, n)
	for i := range c {
		c[i] = v
	}
	return c
}

func TestMeasure(t *testing.T) {
	// 4 s at full speed, two bins at a standstill, one slow, then full again.
	counts := append(repeat(40, 1000), 0, 5, 500)
	counts = append(counts, repeat(10, 990)...)
	im, err := measure(binsOf(counts...), 4*time.Second, 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	want := impact{perSecond: 10000, slow: 310 * time.Millisecond, worst: 210 * time.Millisecond, after: 1300 * time.Millisecond}
	if im != want {
		t.Errorf("got %+v, want %+v", im, want)
	}
}

func TestMeasureLateBin(t *testing.T) {
	// A guest that stalls for 700 ms closes one long bin.
	bins := binsOf(repeat(40, 1000)...)
	bins = append(bins, guestapi.TouchBin{TNS: int64(4700 * time.Millisecond), N: 20})
	for i := range 3 {
		bins = append(bins, guestapi.TouchBin{TNS: int64(4800+100*i) * int64(time.Millisecond), N: 1000})
	}
	im, err := measure(bins, 4*time.Second, 0)
	if err != nil {
		t.Fatal(err)
	}
	if im.worst != 700*time.Millisecond || im.slow != 700*time.Millisecond {
		t.Errorf("worst %v, slow %v, want 700 ms each", im.worst, im.slow)
	}
}

func TestMeasureNeverBack(t *testing.T) {
	im, err := measure(binsOf(append(repeat(40, 1000), repeat(10, 500)...)...), 4*time.Second, 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if im.slow != 1010*time.Millisecond {
		t.Errorf("slow for %v, want the second observed and the downtime", im.slow)
	}
}

func TestMeasureNeedsABefore(t *testing.T) {
	if _, err := measure(binsOf(repeat(40, 0)...), 4*time.Second, 0); err == nil {
		t.Error("a guest that touched nothing before was compared with")
	}
	if _, err := measure(binsOf(1000), 0, 0); err == nil {
		t.Error("no bins before the switch-over were enough")
	}
}
