package micro

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/transport"
)

// BatchBytes are the sizes of answers that [Codec] measures.
var BatchBytes = []int{4 << 10, 64 << 10, 256 << 10, 2 << 20}

var codecs = []transport.Codec{transport.CodecNone, transport.CodecS2, transport.CodecZstd}

// chooserModes are those in which the chooser looks at a sample.
var chooserModes = []transport.CodecMode{transport.ModeS2, transport.ModeZstd, transport.ModeAuto}

// chooserLink is the link that the chooser is told of, in bytes a second: on one
// of 1 Gbit/s it wants to compress.
const chooserLink = 125e6

// CodecOptions configure [Codec].
type CodecOptions struct {
	Common
	Data int // bytes of each kind of data, a multiple of 2 MiB; 0 means 4 MiB
}

// CodecRow is one codec on one kind of data in answers of one size. Sending is
// encoding (none: copying) and the CRC32C of what goes on the wire; receiving is
// that CRC and decoding. Rates are of guest memory.
type CodecRow struct {
	Codec   string        `json:"codec"`
	Data    string        `json:"data"`
	Batch   int           `json:"batch_bytes"`
	Send    report.Spread `json:"send_bytes_per_s"`
	Receive report.Spread `json:"receive_bytes_per_s"`
	Ratio   float64       `json:"ratio"` // bytes on the wire for one of guest memory
}

// CodecFloor is what a copy and a CRC32C cost, each alone.
type CodecFloor struct {
	Batch int           `json:"batch_bytes"`
	Copy  report.Spread `json:"copy_bytes_per_s"`
	CRC   report.Spread `json:"crc_bytes_per_s"`
}

// ChooserRow is what the look at a sample costs for nothing: on noise.
type ChooserRow struct {
	Mode   string        `json:"mode"`
	Batch  int           `json:"batch_bytes"`
	Choose report.Spread `json:"choose_ns"`
	Raw    report.Spread `json:"raw_ns"` // a copy and a CRC32C of the answer, in the same pass
	Share  report.Spread `json:"share"`  // Choose over Raw, pass by pass
}

// CodecResult is what [Codec] found.
type CodecResult struct {
	Floors  []CodecFloor `json:"floors"`
	Rows    []CodecRow   `json:"rows"`
	Chooser []ChooserRow `json:"chooser"`
}

// block is one answer: its data, and room for it on the wire and at the receiver.
type block struct {
	src, wire, dst []byte
}

// codecCase walks over its data answer by answer, so that small answers do not
// stay in the cache of the first level.
type codecCase struct {
	codec  transport.Codec
	blocks []block
	out    []byte // what send encodes into
	crc    uint32
}

func newCodecCase(c transport.Codec, data []byte, batch int) (*codecCase, error) {
	cc := &codecCase{codec: c, out: make([]byte, transport.MaxEncoded(batch))}
	dst := make([]byte, batch)
	for at := 0; at < len(data); at += batch {
		b := block{src: data[at : at+batch], dst: dst}
		if err := cc.encode(b.src); err != nil {
			return nil, err
		}
		b.wire = bytes.Clone(cc.out)
		cc.blocks = append(cc.blocks, b)
		if err := transport.Decode(c, b.dst, b.wire); err != nil {
			return nil, err
		}
		if !bytes.Equal(b.dst, b.src) {
			return nil, fmt.Errorf("%v: an answer of %d bytes does not come back as it was sent", c, batch)
		}
	}
	return cc, nil
}

// encode leaves src as it goes on the wire in out.
func (cc *codecCase) encode(src []byte) (err error) {
	if cc.codec == transport.CodecNone {
		cc.out = cc.out[:copy(cc.out[:cap(cc.out)], src)]
		return nil
	}
	cc.out, err = transport.Encode(cc.codec, cc.out[:cap(cc.out)], src)
	return err
}

func (cc *codecCase) send() error {
	for _, b := range cc.blocks {
		if err := cc.encode(b.src); err != nil {
			return err
		}
		cc.crc = transport.UpdateCRC(0, cc.out)
	}
	return nil
}

func (cc *codecCase) receive() error {
	for _, b := range cc.blocks {
		cc.crc = transport.UpdateCRC(0, b.wire)
		if err := transport.Decode(cc.codec, b.dst, b.wire); err != nil {
			return err
		}
	}
	return nil
}

func (cc *codecCase) copy() error {
	for _, b := range cc.blocks {
		copy(b.dst, b.src)
	}
	return nil
}

func (cc *codecCase) sum() error {
	for _, b := range cc.blocks {
		cc.crc = transport.UpdateCRC(0, b.src)
	}
	return nil
}

func (cc *codecCase) ratio() float64 {
	var src, wire int
	for _, b := range cc.blocks {
		src, wire = src+len(b.src), wire+len(b.wire)
	}
	return float64(wire) / float64(src)
}

// Codec measures what the codecs do to answers, and what [transport.Chooser] costs
// where nothing can be compressed.
func Codec(ctx context.Context, o CodecOptions) (CodecResult, error) {
	o.defaults(15 * time.Millisecond)
	if o.Data == 0 {
		o.Data = 4 << 20
	}
	m := codecMeter{o: o, rows: map[rowKey]*codecFigures{}, floors: map[int]*codecFigures{}, chooser: map[chooserKey]*chooserFigures{}}
	for _, kind := range Kinds {
		m.data = append(m.data, kind.pages(o.Data))
	}
	if err := o.passes(ctx, func() error { return m.pass(ctx) }); err != nil {
		return CodecResult{}, fmt.Errorf("measure the codecs: %w", err)
	}
	return m.result(), nil
}

type (
	rowKey struct {
		codec transport.Codec
		kind  string
		batch int
	}
	chooserKey struct {
		mode  transport.CodecMode
		batch int
	}
	codecFigures struct {
		one, other figure
		ratio      float64
	}
	chooserFigures struct{ choose, raw, share figure }
)

// codecMeter collects the figures over the passes.
type codecMeter struct {
	o       CodecOptions
	rows    map[rowKey]*codecFigures
	floors  map[int]*codecFigures
	chooser map[chooserKey]*chooserFigures
	data    [][]byte // by kind
}

// at returns the figures of a key, made at first.
func at[K comparable, V any](m map[K]*V, k K) *V {
	if m[k] == nil {
		m[k] = new(V)
	}
	return m[k]
}

func (m *codecMeter) pass(ctx context.Context) error {
	for i, kind := range Kinds {
		data := m.data[i]
		for _, batch := range BatchBytes {
			for _, c := range codecs {
				cc, err := newCodecCase(c, data, batch)
				if err != nil {
					return err
				}
				f := at(m.rows, rowKey{c, kind.Name, batch})
				f.ratio = cc.ratio()
				if err := m.rates(f, cc.send, cc.receive); err != nil {
					return err
				}
				// The first kind is noise.
				if i == 0 && c == transport.CodecNone {
					if err := m.noise(cc, batch); err != nil {
						return err
					}
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
		}
	}
	return nil
}

// rates adds the bytes a second of two ways over the data.
func (m *codecMeter) rates(f *codecFigures, one, other func() error) error {
	a, err := perCall(m.o.Slice, one)
	if err != nil {
		return err
	}
	b, err := perCall(m.o.Slice, other)
	f.one.add(float64(m.o.Data) / a * 1e9)
	f.other.add(float64(m.o.Data) / b * 1e9)
	return err
}

// noise measures the floors and the chooser, for which raw is sent noise.
func (m *codecMeter) noise(raw *codecCase, batch int) error {
	if err := m.rates(at(m.floors, batch), raw.copy, raw.sum); err != nil {
		return err
	}
	for _, mode := range chooserModes {
		ch := transport.NewChooser(mode, transport.AllFeatures)
		ch.Link(chooserLink)
		r, err := perCall(m.o.Slice, raw.send)
		if err != nil {
			return err
		}
		c, err := perCall(m.o.Slice, func() error {
			for _, b := range raw.blocks {
				if got := ch.Choose(b.src); got != transport.CodecNone {
					return fmt.Errorf("the chooser wants %v for noise", got)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		f, n := at(m.chooser, chooserKey{mode, batch}), float64(len(raw.blocks))
		f.choose.add(c / n)
		f.raw.add(r / n)
		f.share.add(c / r)
	}
	return nil
}

func (m *codecMeter) result() (r CodecResult) {
	for _, batch := range BatchBytes {
		f := at(m.floors, batch)
		r.Floors = append(r.Floors, CodecFloor{Batch: batch, Copy: f.one.spread(), CRC: f.other.spread()})
		for _, kind := range Kinds {
			for _, c := range codecs {
				f := at(m.rows, rowKey{c, kind.Name, batch})
				r.Rows = append(r.Rows, CodecRow{Codec: c.String(), Data: kind.Name, Batch: batch,
					Send: f.one.spread(), Receive: f.other.spread(), Ratio: f.ratio})
			}
		}
		for _, mode := range chooserModes {
			f := at(m.chooser, chooserKey{mode, batch})
			r.Chooser = append(r.Chooser, ChooserRow{Mode: mode.String(), Batch: batch,
				Choose: f.choose.spread(), Raw: f.raw.spread(), Share: f.share.spread()})
		}
	}
	return r
}

// Text writes the tables.
func (r CodecResult) Text(w io.Writer) error {
	size := func(n int) string { return humanize.IBytes(uint64(n)) }
	mb := func(s report.Spread) string { return scaled(s, 1e-6).Text() }
	var floors, rows, chooser [][]string
	for _, f := range r.Floors {
		floors = append(floors, []string{size(f.Batch), mb(f.Copy), mb(f.CRC)})
	}
	for _, c := range r.Rows {
		rows = append(rows, []string{c.Codec, c.Data, size(c.Batch), mb(c.Send), mb(c.Receive), fmt.Sprintf("%.3f", c.Ratio)})
	}
	for _, c := range r.Chooser {
		chooser = append(chooser, []string{c.Mode, size(c.Batch), scaled(c.Choose, 1e-3).Text(), scaled(c.Raw, 1e-3).Text(), scaled(c.Share, 100).Text()})
	}
	for _, t := range []struct {
		header []string
		rows   [][]string
	}{
		{[]string{"floor", "copy MB/s", "CRC32C MB/s"}, floors},
		{[]string{"codec", "data", "answer", "send MB/s", "receive MB/s", "ratio"}, rows},
		{[]string{"choosing on noise", "answer", "choose µs", "copy + CRC µs", "share %"}, chooser},
	} {
		if err := report.Table(w, t.header, t.rows); err != nil {
			return err
		}
		if _, err := io.WriteString(w, "\n"); err != nil {
			return err
		}
	}
	return nil
}

func scaled(s report.Spread, by float64) report.Spread {
	return report.Spread{Median: s.Median * by, Min: s.Min * by, Max: s.Max * by, N: s.N}
}
