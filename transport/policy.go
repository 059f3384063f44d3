package transport

import (
	"fmt"
	"time"
)

// CodecMode is how a session chooses the codec of its answers.
type CodecMode uint8

// The codec modes. Each sends raw what does not shrink.
const (
	ModeNone CodecMode = iota // never compress
	ModeS2                    // S2: several hundred MB/s a core, modest ratio
	ModeZstd                  // zstd, fastest level: better ratio, less speed
	ModeAuto                  // whichever moves more guest bytes a second, by measurement
)

var modeNames = [...]string{"none", "s2", "zstd", "auto"}

// String returns the mode as [ParseCodecMode] takes it.
func (m CodecMode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("codec mode %d", uint8(m))
}

// ParseCodecMode reads a mode by name.
func ParseCodecMode(s string) (CodecMode, error) {
	for i, n := range modeNames {
		if s == n {
			return CodecMode(i), nil
		}
	}
	return 0, fmt.Errorf("codec %q is not one of none, s2, zstd, auto", s)
}

// UnmarshalText reads a mode by name; configuration files use it.
func (m *CodecMode) UnmarshalText(b []byte) error {
	v, err := ParseCodecMode(string(b))
	if err == nil {
		*m = v
	}
	return err
}

// MarshalText is the inverse of UnmarshalText.
func (m CodecMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

const (
	sampleBytes  = 8 << 10 // looked at of each batch
	samplePieces = 4       // places it is taken from
	worthwhile   = 0.9     // a sample must shrink below this part of itself
	smooth       = 0.2     // weight of a new measurement
	explore      = 32      // auto tries another codec in one of so many batches
	hopeless     = 2       // and not one that would have to be so many times better than it was,
	seldom       = 16      // but for one such try in so many: what it was may have been a bad moment

	// CPUs count as short from where on the channel's own work waits for one for so much
	// of its time, and no more from where on it is so little.
	cpuShort  = 0.2
	cpuEnough = 0.06
	cpuSpan   = time.Millisecond // of work that is one measurement
)

// Chooser picks the codec of each answer of one channel. It is not safe for
// concurrent use.
type Chooser struct {
	mode     CodecMode
	features Features
	sample   [sampleBytes]byte
	out      [sampleBytes + sampleBytes/2]byte
	speed    [3]float64    // bytes of guest memory encoded per second, by codec
	ratio    [3]float64    // encoded bytes per guest byte, by codec
	link     float64       // bytes per second the socket takes; 0: not known
	told     bool          // link comes from Link, not from Wrote
	wall     time.Duration // of the work that waits does not have yet
	cpu      time.Duration
	waits    float64 // share of the channel's work that it waits for a CPU
	short    bool    // which is too much
	batches  uint64
	probe    Codec // the codec tried last
}

// NewChooser returns a chooser for mode within what the handshake agreed on.
func NewChooser(mode CodecMode, f Features) *Chooser {
	// Starting points, replaced by the first measurements.
	return &Chooser{mode: mode, features: f, ratio: [3]float64{1, 0.5, 0.4}, speed: [3]float64{10e9, 800e6, 300e6}}
}

// Choose returns the codec for data.
func (ch *Chooser) Choose(data []byte) Codec {
	c := ch.wanted()
	if c == CodecNone || len(data) == 0 || !ch.shrinks(c, data) {
		return CodecNone
	}
	return c
}

func (ch *Chooser) wanted() Codec {
	switch ch.mode {
	case ModeS2, ModeZstd:
		if c := Codec(ch.mode); ch.features.Codec(c) {
			return c
		}
		return CodecNone
	case ModeAuto:
	default:
		return CodecNone
	}
	ch.batches++
	if ch.batches%explore == 0 {
		ch.probe = (ch.probe + 1) % 3
		again := ch.batches%(explore*seldom) == 0
		if ch.features.Codec(ch.probe) && (again || hopeless*ch.rate(ch.probe) > ch.rate(ch.best())) {
			return ch.probe
		}
	}
	return ch.best()
}

func (ch *Chooser) best() Codec {
	best := CodecNone
	for c := CodecS2; c <= CodecZstd; c++ {
		// A tenth more is asked of a codec before it takes CPU from the guest.
		if ch.features.Codec(c) && ch.rate(c) > 1.1*ch.rate(best) {
			best = c
		}
	}
	return best
}

// rate estimates guest bytes per second with c: encoding and the wire run side
// by side, since the socket's buffer decouples them, so the slower one counts. Where
// CPUs are short they do not: the time that a codec takes is missing where the bytes
// are sent and received.
func (ch *Chooser) rate(c Codec) float64 {
	switch {
	case ch.link == 0:
		return ch.speed[c]
	case ch.short:
		return 1 / (1/ch.speed[c] + ch.ratio[c]/ch.link)
	}
	return min(ch.speed[c], ch.link/ch.ratio[c])
}

// shrinks encodes a sample of data, taken from several places.
func (ch *Chooser) shrinks(c Codec, data []byte) bool {
	s := data
	if len(data) > sampleBytes {
		const piece = sampleBytes / samplePieces
		step := (len(data) - piece) / (samplePieces - 1)
		for i := range samplePieces {
			copy(ch.sample[i*piece:(i+1)*piece], data[i*step:])
		}
		s = ch.sample[:]
	}
	enc, err := Encode(c, ch.out[:], s)
	return err == nil && float64(len(enc)) < worthwhile*float64(len(s))
}

// Encoded records that c took d to turn in guest bytes into out bytes.
func (ch *Chooser) Encoded(c Codec, in, out int, d time.Duration) {
	if in == 0 || d <= 0 {
		return
	}
	ewma(&ch.speed[c], float64(in)/d.Seconds())
	ewma(&ch.ratio[c], float64(out)/float64(in))
}

// Link records the rate that the transport itself has measured, in bytes per
// second; 0 is not known. It then counts instead of what Wrote sees.
func (ch *Chooser) Link(rate float64) {
	if rate > 0 {
		ch.link, ch.told = rate, true
	}
}

// Worked records that the channel's own work, without any wait, took wall of the
// clock's time and cpu of a CPU's: what differs is a wait for a CPU.
func (ch *Chooser) Worked(wall, cpu time.Duration) {
	ch.wall, ch.cpu = ch.wall+max(0, wall), ch.cpu+max(0, cpu)
	if ch.wall < cpuSpan {
		return
	}
	ewma(&ch.waits, max(0, 1-ch.cpu.Seconds()/ch.wall.Seconds()))
	ch.wall, ch.cpu = 0, 0
	if !ch.short && ch.waits > cpuShort || ch.short && ch.waits < cpuEnough {
		ch.short = !ch.short
	}
}

// Measures says whether the mode looks at what is measured.
func (ch *Chooser) Measures() bool { return ch.mode == ModeAuto }

// Wrote records that n bytes were handed to the socket in write, and that total
// passed since the last such moment. Only a write that waited tells the link's
// rate; one that did not is a lower bound.
func (ch *Chooser) Wrote(n int, write, total time.Duration) {
	if n == 0 || total <= 0 || ch.told {
		return
	}
	r := float64(n) / total.Seconds()
	if waited := write*2 > total; waited || r > ch.link && ch.link != 0 {
		if ch.link == 0 {
			ch.link = r
			return
		}
		ewma(&ch.link, r)
	}
}

func ewma(v *float64, x float64) { *v += smooth * (x - *v) }

// Raw says that Choose would return CodecNone whatever the data.
func (ch *Chooser) Raw() bool { return ch.mode == ModeNone }
