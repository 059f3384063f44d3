package relocate

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/pagecache"
)

// A fault log is a sequence of records of FaultRecordSize bytes, little endian:
// i64 Unix time in ns, u64 page, u32 region, u8 class, u24 pages, which is 0 but
// for FaultListed. A daemon that died may have cut the last one short.
const FaultRecordSize = 24

// FaultServed is the class of a record that says that a fetched page was shown.
const FaultServed faultd.FaultClass = 0xff

// FaultListed is the class of a record that is no fault: the source's hot list
// names the pages from Page on. Those of one list have the same time, and are in
// its order.
const FaultListed faultd.FaultClass = 0xfe

const mostListed = 1<<24 - 1 // pages of one record

// FaultRecord is one record of a fault log.
type FaultRecord struct {
	At     int64  // Unix time, ns
	Page   uint64 // within the region
	Region uint32
	Class  faultd.FaultClass // or FaultServed, FaultListed
	Count  uint32            // pages, of FaultListed; else 0
}

// append adds the record to b.
func (r FaultRecord) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(r.At))
	b = binary.LittleEndian.AppendUint64(b, r.Page)
	b = binary.LittleEndian.AppendUint32(b, r.Region)
	return binary.LittleEndian.AppendUint32(b, uint32(r.Class)|r.Count<<8)
}

// ReadFaultLog reads a fault log, in the order of time, without a last record
// that was cut short. An error names the record that is none.
func ReadFaultLog(path string) ([]FaultRecord, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read fault log: %w", err)
	}
	rs, err := parseFaults(b)
	if err != nil {
		return nil, fmt.Errorf("read fault log %s: %w", path, err)
	}
	return rs, nil
}

func parseFaults(b []byte) ([]FaultRecord, error) {
	rs := make([]FaultRecord, 0, len(b)/FaultRecordSize)
	for ; len(b) >= FaultRecordSize; b = b[FaultRecordSize:] {
		r := FaultRecord{
			At: int64(binary.LittleEndian.Uint64(b)), Page: binary.LittleEndian.Uint64(b[8:]),
			Region: binary.LittleEndian.Uint32(b[16:]), Class: faultd.FaultClass(b[20]),
			Count: binary.LittleEndian.Uint32(b[20:]) >> 8,
		}
		switch {
		case r.At <= 0:
			return nil, fmt.Errorf("record %d has the time %d: the file is damaged, record again", len(rs), r.At)
		case r.Class > faultd.FaultZero && r.Class != FaultServed && r.Class != FaultListed:
			return nil, fmt.Errorf("record %d has the class %d: the file is damaged, or of a later version", len(rs), r.Class)
		case (r.Count != 0) != (r.Class == FaultListed):
			return nil, fmt.Errorf("record %d of the class %d has %d pages: the file is damaged, or of a later version", len(rs), r.Class, r.Count)
		}
		rs = append(rs, r)
	}
	// Several threads write: neighbours may be swapped.
	slices.SortStableFunc(rs, func(a, b FaultRecord) int { return cmp.Compare(a.At, b.At) })
	return rs, nil
}

const (
	faultLogHalf  = 1 << 15 // records of each half of the buffer
	faultLogEvery = 100 * time.Millisecond
)

// faultLog writes the faults of one machine to a file, for pagewarp bench trace.
// The fault path only copies into memory; what does not fit, because the disk is
// slower than the faults, is dropped and counted.
type faultLog struct {
	file    *os.File
	stop    chan struct{}
	done    chan struct{}
	mu      sync.Mutex
	buf     []byte // guarded by mu
	spare   []byte // guarded by mu
	dropped uint64 // guarded by mu
	err     error  // valid once done is closed
}

func newFaultLog(dir string, in *incoming) (*faultLog, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of fault logs: %w", err)
	}
	path := filepath.Join(dir, in.rec.VM+"-"+in.Status().Session+".faults")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("fault log: %w", err)
	}
	l := &faultLog{file: f, stop: make(chan struct{}), done: make(chan struct{}),
		buf: make([]byte, 0, faultLogHalf*FaultRecordSize), spare: make([]byte, 0, faultLogHalf*FaultRecordSize)}
	go l.run()
	return l, nil
}

// Fault notes a fault.
func (l *faultLog) Fault(region uint32, page uint64, class faultd.FaultClass, read time.Time) {
	l.put(FaultRecord{At: read.UnixNano(), Page: page, Region: region, Class: class})
}

// Served notes the end of a fetch.
func (l *faultLog) Served(region uint32, page uint64, at time.Time) {
	l.put(FaultRecord{At: at.UnixNano(), Page: page, Region: region, Class: FaultServed})
}

// Listed notes a hot list.
func (l *faultLog) Listed(runs []pagecache.Run) {
	now := time.Now().UnixNano()
	for _, r := range runs {
		for n := uint32(0); r.Count > 0; r.First, r.Count = r.First+uint64(n), r.Count-n {
			n = min(r.Count, mostListed)
			l.put(FaultRecord{At: now, Page: r.First, Region: r.Region, Class: FaultListed, Count: n})
		}
	}
}

func (l *faultLog) put(r FaultRecord) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.buf) == cap(l.buf) {
		l.dropped++
		return
	}
	l.buf = r.append(l.buf)
}

// run writes what has come, now and then.
func (l *faultLog) run() {
	defer close(l.done)
	tick := time.NewTicker(faultLogEvery)
	defer tick.Stop()
	for {
		var last bool
		select {
		case <-tick.C:
		case <-l.stop:
			last = true
		}
		l.mu.Lock()
		full := l.buf
		l.buf, l.spare = l.spare[:0], nil
		l.mu.Unlock()
		if l.err == nil {
			_, l.err = l.file.Write(full)
		}
		l.mu.Lock()
		l.spare = full[:0]
		l.mu.Unlock()
		if last {
			return
		}
	}
}

// close writes the rest. Nobody may call Fault or Served any more. A nil log has
// nothing to close.
func (l *faultLog) close() error {
	if l == nil {
		return nil
	}
	select {
	case <-l.stop:
		return nil // closed before
	default:
	}
	close(l.stop)
	<-l.done
	err := errors.Join(l.err, l.file.Close())
	if err != nil {
		return fmt.Errorf("fault log: %w", err)
	}
	if l.dropped > 0 {
		return fmt.Errorf("fault log %s lacks %d faults: its disk was slower than they came", l.file.Name(), l.dropped)
	}
	return nil
}
