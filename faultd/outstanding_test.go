package faultd

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
	"pgregory.net/rapid"
)

// The table against a map: entries are found by their group, none is lost when
// others leave, and the bound holds.
func TestOutstandingModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		group := uint32(1) << rapid.IntRange(0, 4).Draw(t, "log group")
		o := newOutstanding(8, group)
		type key struct {
			region uint32
			group  uint64
		}
		model := map[key]uint32{}
		dup := map[uint32]bool{}
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "enter") {
				region, page := rapid.Uint32Range(1, 2).Draw(t, "region"), rapid.Uint64Range(0, 400).Draw(t, "page")
				k := key{region, page / uint64(group)}
				n, how := o.enter(region, page, time.Time{})
				had, ok := model[k]
				switch {
				case ok:
					if how != lookupDup || n != had {
						t.Fatalf("page %d: slot %d, %v; the fetch has slot %d", page, n, how, had)
					}
					dup[n] = true
				case len(model) == 8:
					if how != lookupFull {
						t.Fatalf("page %d was taken beyond the bound", page)
					}
				default:
					if how != lookupNew {
						t.Fatalf("page %d: %v with %d fetches under way", page, how, len(model))
					}
					for _, other := range model {
						if other == n {
							t.Fatalf("slot %d was given out twice", n)
						}
					}
					model[k], dup[n] = n, false
				}
			} else {
				for k, n := range model {
					if got := o.leave(n); got != dup[n] {
						t.Fatalf("slot %d left with dup %v, want %v", n, got, dup[n])
					}
					delete(model, k)
					break
				}
			}
			if o.inUse() != len(model) {
				t.Fatalf("%d in use, want %d", o.inUse(), len(model))
			}
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	res, err := pagecache.New(10)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	good := func() Config {
		return Config{
			Regions: []Region{{Region: transport.Region{ID: 1, Pages: 10, PageSize: 4096}, Residency: res}},
			Memory:  Memory{Faults: struct{ FaultSource }{}, Install: struct{ Installer }{}},
			Open:    func(context.Context, transport.Kind, int) (transport.Fetcher, error) { return nil, nil },
		}
	}
	if _, err := New(good()); err != nil {
		t.Fatalf("a good configuration: %v", err)
	}
	for name, spoil := range map[string]func(*Config){
		"no regions":        func(c *Config) { c.Regions = nil },
		"region twice":      func(c *Config) { c.Regions = append(c.Regions, c.Regions[0]) },
		"no residency":      func(c *Config) { c.Regions[0].Residency = nil },
		"short residency":   func(c *Config) { c.Regions[0].Pages = 11 },
		"no installer":      func(c *Config) { c.Memory.Install = nil },
		"no source":         func(c *Config) { c.Memory.Faults = nil },
		"no opener":         func(c *Config) { c.Open = nil },
		"odd read-around":   func(c *Config) { c.ReadAround = 3 },
		"too many readers":  func(c *Config) { c.Readers = 100 },
		"odd outstanding":   func(c *Config) { c.Outstanding = 100 },
		"too many channels": func(c *Config) { c.DemandChannels = 1000 },
	} {
		c := good()
		spoil(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A fault's fetch found to be new, found again by a second fault, and ended, with
// others under way.
func BenchmarkOutstanding(b *testing.B) {
	for _, others := range []int{0, 48} {
		b.Run(fmt.Sprint(others), func(b *testing.B) {
			o := newOutstanding(64, 1)
			for i := range others {
				o.enter(2, uint64(i)*977, time.Time{})
			}
			b.ReportAllocs()
			for page := uint64(0); b.Loop(); page += 4099 {
				n, how := o.enter(1, page, time.Time{})
				if _, again := o.enter(1, page, time.Time{}); how != lookupNew || again != lookupDup || !o.leave(n) {
					b.Fatalf("page %d: %v, then %v", page, how, again)
				}
			}
		})
	}
}
