package pagecache

// MaxListed is the most runs of one [Planner.Prefer].
const MaxListed = 1 << 16

// HotConfig configures a [Hot]. Zero fields take the defaults.
type HotConfig struct {
	// Gap is the most pages between two neighbours of the list that are fetched
	// along with them. Default 16: beside its pages, at 2.4 µs each, a fetch costs
	// 19 µs (BenchmarkFetchSize of faultd), and the pages between are wanted too,
	// only later.
	Gap uint64
}

// Hot fetches the pages of a list, in its order: the source's record of what the
// guest touched last (Hines and Gopalan, VEE 2009, propose to start a bubble
// there; here each page is named).
type Hot struct {
	cfg   HotConfig
	lists [][]PageSpan // newest last
}

// NewHot returns a policy without a list.
func NewHot(cfg HotConfig) *Hot {
	if cfg.Gap == 0 {
		cfg.Gap = 16
	}
	return &Hot{cfg: cfg}
}

// Name returns "hot".
func (h *Hot) Name() string { return "hot" }

// Fault does nothing.
func (h *Hot) Fault(View, int, uint64) {}

// List takes a list, and proposes it before what is left of earlier ones.
func (h *Hot) List(spans []PageSpan) {
	list := make([]PageSpan, 0, len(spans))
	for _, s := range spans {
		if n := len(list) - 1; n >= 0 && list[n].Region == s.Region {
			end := list[n].First + list[n].Count
			if s.First >= end && s.First-end <= h.cfg.Gap {
				list[n].Count = s.First + s.Count - list[n].First
				continue
			}
		}
		list = append(list, s)
	}
	if len(list) > 0 {
		h.lists = append(h.lists, list)
	}
}

// ProposePages returns the next span of the newest list.
func (h *Hot) ProposePages(View) (PageSpan, bool) {
	n := len(h.lists) - 1
	if n < 0 {
		return PageSpan{}, false
	}
	s := h.lists[n][0]
	if h.lists[n] = h.lists[n][1:]; len(h.lists[n]) == 0 {
		h.lists = h.lists[:n]
	}
	return s, true
}
