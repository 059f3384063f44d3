package transporttest

import (
	"testing"

	"github.com/pagewarp/pagewarp/transport"
)

// testRepeat has pages that repeat others of their answer, of which some are
// claimed already: the pages they repeat must arrive from what was dropped.
func testRepeat(t *testing.T, h Harness) {
	im := mixed(t, 31)
	reg := im.Regions[0]
	for p := uint64(0); p+8 < reg.Pages; p += 8 {
		im.Put(reg.ID, p, Random, 5)
		for _, to := range []uint64{2, 3, 7} { // two side by side, one apart
			copy(im.Memory(span(reg.ID, p+to, 1)), im.Memory(span(reg.ID, p, 1)))
		}
	}
	im.Once = true
	for _, mode := range []transport.CodecMode{transport.ModeNone, transport.ModeS2, transport.ModeZstd} {
		t.Run(mode.String(), func(t *testing.T) {
			e := answeredChannel(t, h, Options{Kind: transport.Precache, Features: transport.AllFeatures, Codec: mode}, im, true)
			taken := 0
			for p := uint64(0); p < reg.Pages; p += 24 { // each third group's first page, and one of its repeats
				e.sink.Take(span(reg.ID, p, 1))
				e.sink.Take(span(reg.ID, p+3, 1))
				taken += 2
			}
			repeat := 0
			for _, c := range e.get(whole(reg, 64)...) {
				repeat += int(c.Repeat)
				if c.Data+c.Fill+c.Zero+c.Repeat != c.Count {
					t.Errorf("answer of %+v: %d data, %d fill, %d zero, %d repeated", c.Range, c.Data, c.Fill, c.Zero, c.Repeat)
				}
			}
			if want := 3 * (int(reg.Pages)/8 - 1); repeat < want {
				t.Errorf("%d pages came as a repeat of others, want %d at least", repeat, want)
			}
			if n, held := e.sink.Counts(); n != int(reg.Pages) || held != 0 {
				t.Errorf("%d of %d pages are resident, %d reserved (%d were before)", n, reg.Pages, held, taken)
			}
			for p := uint64(0); p < reg.Pages; p++ {
				if p%24 != 0 && p%24 != 3 {
					e.sink.Check(t, im, span(reg.ID, p, 1))
				}
			}
		})
	}
	t.Run("without the feature", func(t *testing.T) {
		e := answeredChannel(t, h, Options{Features: transport.AllFeatures &^ transport.FeatureRepeat}, im, true)
		for _, c := range e.get(whole(reg, 64)...) {
			if c.Repeat != 0 {
				t.Errorf("answer of %+v repeats %d pages", c.Range, c.Repeat)
			}
		}
		e.sink.Check(t, im, span(reg.ID, 0, uint32(reg.Pages)))
	})
}
