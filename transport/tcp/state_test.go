package tcp

import (
	"bytes"
	"io"
	"testing"
	"time"

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

// A peer that cuts its state into crumbs is held back by their number, long before their
// bytes are many: each costs more than it holds.
func TestStateInCrumbs(t *testing.T) {
	s := newStatePipe(stateBuffer)
	done, full := make(chan struct{}), make(chan int, 1)
	go func() {
		n := 0
		for n < stateBuffer && s.put(s.buffer(1), false, done) {
			n++
		}
		full <- n
	}()
	select {
	case n := <-full:
		t.Fatalf("%d frames of a byte were taken while nobody reads", n)
	case <-time.After(100 * time.Millisecond):
	}
	for range 10 * stateChunks { // it goes on as they are read
		if n, err := s.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	close(done)
	if n := <-full; n < 10*stateChunks || n > 11*stateChunks+1 {
		t.Errorf("%d frames taken, %d read; %d may wait", n, 10*stateChunks, stateChunks)
	}
}
