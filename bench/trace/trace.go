package trace

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/pagecache"
)

// Schema is the version of the format. New fields do not raise it.
const Schema = 1

// maxFile bounds what is read of a trace, unpacked.
const maxFile = 1 << 30

// Class says what a fault met.
type Class uint8

// The classes, with the numbers they have in files.
const (
	Fetched    Class = 0 // absent: it was fetched
	Joined     Class = 1 // another fault's fetch was under way
	Installing Class = 2 // the page was on its way in
	Resident   Class = 3 // the page was there, and only had to be shown
	Zero       Class = 4 // the page reads as zero
)

// Touch is one touch of a page.
type Touch struct {
	// At is the time of the touch since the start, as it was recorded.
	At time.Duration
	// Think is how long the guest computed before it, on one vCPU.
	Think  time.Duration
	Region uint32
	Page   uint64
	Class  Class
}

// MarshalJSON writes [at ns, think ns, region, page, class]: traces are long.
func (t Touch) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "[%d,%d,%d,%d,%d]", t.At, t.Think, t.Region, t.Page, t.Class), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (t *Touch) UnmarshalJSON(b []byte) error {
	var v [5]int64
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("touch %.60s: want five whole numbers: %w", b, err)
	}
	if v[0] < 0 || v[1] < 0 || v[2] < 0 || v[2] > 1<<32-1 || v[3] < 0 || v[4] < 0 || v[4] > int64(Zero) {
		return fmt.Errorf("touch %v: a value is out of range", v)
	}
	*t = Touch{time.Duration(v[0]), time.Duration(v[1]), uint32(v[2]), uint64(v[3]), Class(v[4])}
	return nil
}

// Region is one region of the machine.
type Region struct {
	ID       uint32 `json:"id"`
	Name     string `json:"name"`
	Pages    uint64 `json:"pages"`
	PageSize uint64 `json:"page_size"` // bytes
	// Zero are the pages that read as zero at the source: [first, count].
	Zero [][2]uint64 `json:"zero,omitempty"`
}

// Trace is what a machine touched while its memory came over.
type Trace struct {
	Schema  int       `json:"schema"`
	Load    string    `json:"load"`   // what ran in the guest
	Origin  string    `json:"origin"` // "recorded" or "synthetic"
	Created time.Time `json:"created"`
	VCPUs   int       `json:"vcpus"`
	Regions []Region  `json:"regions"`
	// Hot is what the source told of the guest's touches before it stopped, the
	// last first.
	Hot []pagecache.Run `json:"hot,omitempty"`
	// Seconds is how long was recorded.
	Seconds float64 `json:"seconds"`
	// Link is what the machine was measured to give in the same run.
	Link Measured `json:"link"`
	// Real, if not nil, is a real relocation of the same guest with precache.
	Real    *Real   `json:"real,omitempty"`
	Touches []Touch `json:"touches"`
}

// Measured are floors and shares of the run that a trace is of: what a
// simulation of that run needs to know. Times are in µs.
type Measured struct {
	LocalFaultUS   float64 `json:"local_fault_us"`
	RTTUS          float64 `json:"rtt_us"`
	BytesPerSec    float64 `json:"bytes_per_s"`      // of one precache stream
	LinkBitsPerSec float64 `json:"link_bits_per_s"`  // limit of the link, 0 for none
	WireRatio      float64 `json:"wire_ratio"`       // bytes on the wire for a byte of a page that is not zero
	DemandTotalUS  float64 `json:"demand_median_us"` // of a demand fault on the idle link, in the recorded run
}

// Real is what a real relocation was measured to be.
type Real struct {
	DrainS       float64 `json:"drain_s"`
	PagesDemand  uint64  `json:"pages_demand"`
	Faults       uint64  `json:"faults"`
	FaultP50US   float64 `json:"fault_p50_us"`
	FaultP99US   float64 `json:"fault_p99_us"`
	StallS       float64 `json:"stall_s"` // demand faults times their mean
	WireBytes    uint64  `json:"wire_bytes"`
	Precache     int     `json:"precache_channels"`
	RunPages     uint32  `json:"run_pages"`
	ReadAround   uint32  `json:"read_around"`
	PolicyNames  string  `json:"policies"`
	EngineCommit string  `json:"commit,omitempty"`
}

// check reports what makes a trace useless.
func (t *Trace) check() error {
	switch {
	case t.Schema != Schema:
		return fmt.Errorf("its schema is %d, this program reads %d", t.Schema, Schema)
	case len(t.Regions) == 0:
		return errors.New("it has no regions")
	case len(t.Touches) == 0:
		return errors.New("it has not one touch")
	}
	pages := map[uint32]uint64{}
	for _, r := range t.Regions {
		if r.Pages == 0 || r.Pages > pagecache.MaxPages || r.PageSize == 0 || r.PageSize > 1<<30 {
			return fmt.Errorf("region %d has %d pages of %d bytes", r.ID, r.Pages, r.PageSize)
		}
		if pages[r.ID] != 0 {
			return fmt.Errorf("two regions have the id %d", r.ID)
		}
		pages[r.ID] = r.Pages
		for _, z := range r.Zero {
			if z[0] >= r.Pages || z[1] > r.Pages-z[0] {
				return fmt.Errorf("zero pages %d+%d are outside region %d", z[0], z[1], r.ID)
			}
		}
	}
	for i, x := range t.Touches {
		if x.Page >= pages[x.Region] {
			return fmt.Errorf("touch %d is of page %d of region %d, which there is not", i, x.Page, x.Region)
		}
	}
	return nil
}

// Read reads a trace from a file, packed (.gz) or plain.
func Read(path string) (*Trace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read trace: %w", err)
	}
	defer f.Close()
	var t Trace
	if err := t.decode(f, strings.HasSuffix(path, ".gz")); err != nil {
		return nil, fmt.Errorf("read trace %s: %w", path, err)
	}
	return &t, nil
}

// Write stores a trace, packed if the name ends in .gz. The file appears
// complete or not at all.
func (t *Trace) Write(path string) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write trace: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write trace: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write trace %s: %w", path, err)
		}
	}()
	if strings.HasSuffix(path, ".gz") {
		z := gzip.NewWriter(f)
		err = errors.Join(json.NewEncoder(z).Encode(t), z.Close())
	} else {
		err = json.NewEncoder(f).Encode(t)
	}
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
