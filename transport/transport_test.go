package transport

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHeaderRejects(t *testing.T) {
	put := func(h Header) []byte { b := make([]byte, HeaderSize); h.Put(b); return b }
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"short", make([]byte, 39), "39 bytes"},
		{"unknown type", []byte(strings.Repeat("GET / HTTP", 4)), "unknown frame type 0x47"},
		{"oversized pages", put(Header{Type: TypePages, Length: 1<<20 + 1}), "PAGES has a body of 1048577 bytes, limit 1048576"},
		{"oversized text", put(Header{Type: TypeClose, Length: 1025}), "CLOSE has a body of 1025 bytes, limit 1024"},
		{"oversized message", put(Header{Type: TypeMessage, Length: 1<<20 + 1}), "MESSAGE has a body"},
		{"oversized state", put(Header{Type: TypeState, Length: 256<<10 + 1}), "STATE has a body"},
		{"short hello", put(Header{Type: TypeHello, Length: 111}), "HELLO has a body of 111"},
		{"fetch with body", put(Header{Type: TypeFetch, Length: 1}), "FETCH has a body of 1"},
		{"fetch with flags", put(Header{Type: TypeFetch, Flags: 4}), "non-zero flags"},
		{"oversized index", put(Header{Type: TypeIndex, Length: 256<<10 + 1}), "INDEX has a body"},
		{"index with id", put(Header{Type: TypeIndex, ID: 1}), "non-zero id"},
		{"fetch with aux", put(Header{Type: TypeFetch, Aux: 1}), "non-zero aux"},
		{"fetch with ahead", put(Header{Type: TypeFetch, Ahead: 1}), "non-zero ahead"},
		{"state with id", put(Header{Type: TypeState, ID: 1}), "non-zero id"},
		{"refuse with region", put(Header{Type: TypeRefuse, Region: 1}), "non-zero region"},
		{"refuse with count", put(Header{Type: TypeRefuse, Count: 1}), "non-zero count"},
		{"refuse with first", put(Header{Type: TypeRefuse, First: 1}), "non-zero first"},
	} {
		_, err := ParseHeader(c.b, 1<<20)
		if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one about %q", c.name, err, c.want)
		}
	}
}

func TestFrameCRC(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		body := rapid.SliceOf(rapid.Byte()).Draw(t, "body")
		f := AppendFrame([]byte("x"), Header{Type: TypeState, Flags: StateEnd}, body)[1:]
		check := func() error {
			h, err := ParseHeader(f, 0)
			if err != nil {
				return err
			}
			return h.CheckCRC(UpdateCRC(HeaderCRC(f), f[HeaderSize:]))
		}
		if err := check(); err != nil {
			t.Fatal(err)
		}
		f[rapid.IntRange(0, len(f)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if check() == nil {
			t.Fatal("a flipped bit was not noticed")
		}
	})
}

func hello() Hello {
	return Hello{Low: 1, High: 1, Features: AllFeatures, Kind: Precache, Role: Source, Index: 3, MaxBody: 2 << 20, MaxCount: 256, Token: NewToken(), Epoch: 7}
}

func TestNegotiate(t *testing.T) {
	offer := Offer{Role: Destination, Features: FeatureFill | FeatureS2, MaxCount: 100}
	h := hello()
	h.Low, h.High, h.Features = 1, 9, AllFeatures|1<<20
	w, reject := Negotiate(&h, offer)
	if reject != nil {
		t.Fatal(reject)
	}
	want := Hello{Low: 1, High: 1, Features: FeatureFill | FeatureS2, Kind: Precache, Role: Destination, Index: 3, MaxBody: 2 << 20, MaxCount: 100, Token: h.Token, Epoch: 7}
	if w != want {
		t.Errorf("WELCOME %+v, want %+v", w, want)
	}
	for _, c := range []struct {
		name string
		edit func(*Hello, *Offer)
		code Code
		want string
	}{
		{"newer", func(h *Hello, o *Offer) { h.Low, h.High = 2, 5 }, CodeVersion, "versions 2 to 5 offered, this side speaks 1 to 1"},
		{"same role", func(h *Hello, o *Offer) { h.Role = Destination }, CodeMalformed, "both sides claim to be the destination"},
		{"hello requires", func(h *Hello, o *Offer) { h.Required = FeatureZstd }, CodeFeature, "not offered by the listening side: zstd"},
		{"offer requires", func(h *Hello, o *Offer) { o.Required = FeatureAhead; h.Features = 0 }, CodeFeature, "were not offered: ahead"},
	} {
		h, o := hello(), offer
		c.edit(&h, &o)
		if _, r := Negotiate(&h, o); r == nil || r.Code != c.code || !strings.Contains(r.Text, c.want) {
			t.Errorf("%s: %v, want %v about %q", c.name, r, c.code, c.want)
		}
	}
}

func TestCheckWelcome(t *testing.T) {
	h := hello()
	good, _ := Negotiate(&h, Offer{Role: Destination, Features: AllFeatures})
	for name, edit := range map[string]func(*Hello){
		"version":  func(w *Hello) { w.Low, w.High = 2, 2 },
		"features": func(w *Hello) { w.Features |= 1 << 9 },
		"role":     func(w *Hello) { w.Role = Source },
		"channel":  func(w *Hello) { w.Index++ },
		"token":    func(w *Hello) { w.Token[5]++ },
		"epoch":    func(w *Hello) { w.Epoch++ },
		"max_body": func(w *Hello) { w.MaxBody++ },
		"max_count": func(w *Hello) {
			w.MaxCount++
		},
	} {
		w := good
		edit(&w)
		if err := CheckWelcome(&h, &w); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "WELCOME has "+name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTokenString(t *testing.T) {
	if s := (Token{0xab, 1, 2, 3, 4}).String(); s != "ab010203…" {
		t.Errorf("token is shown as %q", s)
	}
}

// TestDecodeBombs has blocks whose content is longer than their answer says.
func TestDecodeBombs(t *testing.T) {
	huge := make([]byte, 64<<20)
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	z := e.EncodeAll(huge, nil)
	// The same without a content size, as a stream has it.
	var buf bytes.Buffer
	e.Reset(&buf)
	e.Write(huge)
	e.Close()
	small := e.EncodeAll(make([]byte, 4096), nil)
	for _, c := range []struct {
		name  string
		codec Codec
		src   []byte
		want  string
	}{
		{"s2", CodecS2, s2.Encode(nil, huge), "holds 67108864 bytes, want 4096"},
		{"zstd", CodecZstd, z, "holds 67108864 bytes, want 4096"},
		{"zstd stream", CodecZstd, buf.Bytes(), "does not say how long"},
		{"two frames", CodecZstd, append(bytes.Clone(small), small...), "zstd"},
		{"empty", CodecZstd, nil, "zstd header"},
		{"empty s2", CodecS2, nil, "s2"},
		{"unknown", 7, nil, "unknown codec 7"},
	} {
		var before, after runtime.MemStats
		whole, dst := guard(4096)
		Decode(c.codec, dst, c.src) // makes the decoder
		runtime.ReadMemStats(&before)
		err := Decode(c.codec, dst, c.src)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrDecode) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error about %q", c.name, err, c.want)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
			t.Errorf("%s: %d bytes allocated", c.name, took)
		}
		if whole[63] != 0x5a || whole[64+4096] != 0x5a {
			t.Errorf("%s: written outside dst", c.name)
		}
	}
}

func TestCodecsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		src := rapid.SliceOfN(rapid.ByteRange(0, byte(rapid.IntRange(0, 255).Draw(t, "spread"))), 1, 20000).Draw(t, "src")
		for _, c := range []Codec{CodecS2, CodecZstd} {
			enc, err := Encode(c, make([]byte, MaxEncoded(len(src))), src)
			if err != nil {
				t.Fatal(err)
			}
			dst := make([]byte, len(src))
			if err := Decode(c, dst, enc); err != nil || !bytes.Equal(dst, src) {
				t.Fatalf("%v: %v", c, err)
			}
		}
	})
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func TestChooserSkipsIncompressible(t *testing.T) {
	noise, text := random(1<<20), bytes.Repeat([]byte("abcdefghij klm"), 70000)
	for _, mode := range []CodecMode{ModeS2, ModeZstd} {
		ch := NewChooser(mode, AllFeatures)
		if c := ch.Choose(noise); c != CodecNone {
			t.Errorf("%v: noise is sent as %v", mode, c)
		}
		if c := ch.Choose(text); c != Codec(mode) {
			t.Errorf("%v: text is sent as %v", mode, c)
		}
		if c := NewChooser(mode, 0).Choose(text); c != CodecNone {
			t.Errorf("%v: used although not in force", mode)
		}
	}
}

// TestChooserAuto feeds measurements of links of several speeds and expects the
// codec that moves more guest bytes.
func TestChooserAuto(t *testing.T) {
	text := bytes.Repeat([]byte("abcdefghij klm"), 70000)
	for _, c := range []struct {
		link float64 // bytes per second
		want Codec
	}{{10e6, CodecZstd}, {300e6, CodecS2}, {8e9, CodecNone}} {
		ch := NewChooser(ModeAuto, AllFeatures)
		used := map[Codec]int{}
		for range 400 {
			codec := ch.Choose(text)
			used[codec]++
			out, enc := 1<<20, time.Duration(0)
			switch codec {
			case CodecS2:
				out, enc = 1<<19, 1300*time.Microsecond // 800 MB/s, half
			case CodecZstd:
				out, enc = 1<<18, 4*time.Millisecond // 260 MB/s, a quarter
			}
			if codec != CodecNone {
				ch.Encoded(codec, 1<<20, out, enc)
			}
			// The socket drains while the encoder works.
			wire := time.Duration(float64(out) / c.link * 1e9)
			ch.Wrote(out, max(wire-enc, time.Microsecond), max(wire, enc))
		}
		if used[c.want] < 300 {
			t.Errorf("link of %g B/s: codecs used %v, want mostly %v", c.link, used, c.want)
		}
	}
}

// TestChooserIsTold: what the transport has measured counts, and not a burst that
// the socket's buffer took.
func TestChooserIsTold(t *testing.T) {
	ch := NewChooser(ModeAuto, AllFeatures)
	ch.Link(0) // not known
	if got := ch.wanted(); got != CodecNone {
		t.Errorf("link not known: %v", got)
	}
	ch.Link(300e6)
	for range 20 {
		ch.Wrote(1<<20, time.Microsecond, 10*time.Microsecond) // 100 GB/s
		if got := ch.wanted(); got != CodecS2 {
			t.Fatalf("link of 300 MB/s and a burst: %v, want %v", got, CodecS2)
		}
	}
}

// TestChooserWithoutCPUs: where CPUs are short the time that a codec takes is missing
// elsewhere, so that only a slow link is worth it.
func TestChooserWithoutCPUs(t *testing.T) {
	for _, c := range []struct {
		link float64 // bytes per second
		idle Codec   // with CPUs to spare
		busy Codec
	}{{20e6, CodecZstd, CodecZstd}, {60e6, CodecZstd, CodecS2}, {400e6, CodecS2, CodecNone}, {8e9, CodecNone, CodecNone}} {
		ch := NewChooser(ModeAuto, AllFeatures)
		ch.Link(c.link)
		work := func(cpu time.Duration) {
			for range 200 {
				ch.Worked(100*time.Microsecond, cpu)
			}
		}
		work(99 * time.Microsecond)
		if got := ch.best(); got != c.idle {
			t.Errorf("link of %g B/s, CPUs to spare: %v, want %v", c.link, got, c.idle)
		}
		// A moment's wait is none.
		ch.Worked(time.Millisecond, 500*time.Microsecond)
		if got := ch.best(); got != c.idle {
			t.Errorf("link of %g B/s, after one wait for a CPU: %v, want %v", c.link, got, c.idle)
		}
		work(50 * time.Microsecond)
		if got := ch.best(); got != c.busy {
			t.Errorf("link of %g B/s, CPUs short: %v, want %v", c.link, got, c.busy)
		}
		work(90 * time.Microsecond) // better, but not well
		if got := ch.best(); got != c.busy {
			t.Errorf("link of %g B/s, CPUs still short: %v, want %v", c.link, got, c.busy)
		}
		work(99 * time.Microsecond)
		if got := ch.best(); got != c.idle {
			t.Errorf("link of %g B/s, CPUs to spare again: %v, want %v", c.link, got, c.idle)
		}
	}
}

// TestChooserTriesNothingHopeless: a codec is tried now and then, unless it would have to
// be several times as fast as it was.
func TestChooserTriesNothingHopeless(t *testing.T) {
	for _, c := range []struct {
		link float64
		want Codec // tried
	}{{8e9, CodecNone}, {200e6, CodecZstd}} {
		ch := NewChooser(ModeAuto, AllFeatures)
		ch.Link(c.link)
		tried := CodecNone
		for range 3 * explore {
			tried = max(tried, ch.wanted())
		}
		if tried != c.want {
			t.Errorf("link of %g B/s: tried %v, want %v", c.link, tried, c.want)
		}
	}
}

// TestChooserForgetsBadMoments: a codec that was slow while something else had the CPU is tried
// again, and chosen once it is fast.
func TestChooserForgetsBadMoments(t *testing.T) {
	ch := NewChooser(ModeAuto, AllFeatures)
	ch.Link(60e6)
	encoded := func(c Codec, speed time.Duration) {
		ch.Encoded(c, 1<<20, 512<<10, time.Second/speed)
	}
	for range 100 {
		encoded(CodecS2, 2)
		encoded(CodecZstd, 2)
	}
	if got := ch.best(); got != CodecNone {
		t.Fatalf("codecs of 2 MB/s on a link of 60: %v", got)
	}
	for range 100 * explore * seldom {
		if c := ch.wanted(); c != CodecNone {
			encoded(c, 500)
		}
	}
	if got := ch.best(); got == CodecNone {
		t.Error("codecs that were slow once, 500 MB/s since: never tried again")
	}
}

func TestParseCodecMode(t *testing.T) {
	for m := ModeNone; m <= ModeAuto; m++ {
		if got, err := ParseCodecMode(m.String()); err != nil || got != m {
			t.Errorf("%v: %v, %v", m, got, err)
		}
	}
	if _, err := ParseCodecMode("lz4"); err == nil || !strings.Contains(err.Error(), `"lz4"`) {
		t.Errorf("lz4: %v", err)
	}
}
