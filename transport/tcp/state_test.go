package tcp

import (
	"bytes"
	"io"
	"testing"

	"pgregory.net/rapid"
)

// TestStateBuffers: whatever is written comes out, while buffers are used again; not
// more of them are kept than is said.
func TestStateBuffers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newStatePipe(1 << 30)
		var want, got bytes.Buffer
		next, reused := byte(0), 0
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "write") {
				before := len(s.spare)
				b := s.buffer(rapid.SampledFrom([]int{1, 100, 4096, 70_000, spareStateSize + 1}).Draw(t, "bytes"))
				reused += before - len(s.spare)
				for i := range b {
					next += 7
					b[i] = next
				}
				want.Write(b)
				if !s.put(b, false, nil) {
					t.Fatal("not taken")
				}
			}
			for len(s.chunks) > 0 && rapid.Bool().Draw(t, "read") {
				p := make([]byte, rapid.IntRange(1, 100_000).Draw(t, "room"))
				n, err := s.Read(p)
				if err != nil {
					t.Fatal(err)
				}
				got.Write(p[:n])
			}
			if len(s.spare) > spareStates {
				t.Fatalf("%d buffers are kept", len(s.spare))
			}
			for _, b := range s.spare {
				if cap(b) > spareStateSize {
					t.Fatalf("a buffer of %d bytes is kept", cap(b))
				}
			}
		}
		s.put(nil, true, nil)
		if _, err := io.Copy(&got, struct{ io.Reader }{s}); err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Fatalf("%d bytes of %d, or other ones: %v; %d buffers were used again", got.Len(), want.Len(), err, reused)
		}
	})
}
