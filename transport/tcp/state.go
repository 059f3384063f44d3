package tcp

import (
	"io"
	"sync"
)

// statePipe is a bounded queue of received STATE bodies. One writer; readers
// take turns.
type statePipe struct {
	limit int

	mu     sync.Mutex
	chunks []stateChunk  // guarded by mu
	spare  [][]byte      // buffers that were read; guarded by mu
	size   int           // bytes in chunks; guarded by mu
	ended  bool          // the last frame has come; guarded by mu
	err    error         // what readers get after the chunks; guarded by mu
	came   chan struct{} // signals a waiting reader; holds one element
	taken  chan struct{} // signals the writer; holds one element
}

// stateChunk is one body, of which left is still to be read.
type stateChunk struct{ buf, left []byte }

// stateChunks bounds the bodies that wait, of whatever size: the book-keeping of a short
// one takes more than its bytes.
const stateChunks = 4096

// Buffers are used again: new memory costs page faults, while a machine stands still.
const (
	spareStates    = 4
	spareStateSize = 256 << 10 // bytes, of the largest that is kept
)

// buffer returns memory for a body of n bytes.
func (s *statePipe) buffer(n int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, b := range s.spare {
		if n > 0 && cap(b) >= n {
			last := len(s.spare) - 1
			s.spare[i] = s.spare[last]
			s.spare = s.spare[:last]
			return b[:n]
		}
	}
	return make([]byte, n)
}

func newStatePipe(limit int) *statePipe {
	return &statePipe{limit: limit, came: make(chan struct{}, 1), taken: make(chan struct{}, 1)}
}

// put appends b, which it keeps, and waits while the queue is over its limit.
// It returns false after the end of the stream, or when done is closed.
func (s *statePipe) put(b []byte, end bool, done <-chan struct{}) bool {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return false
	}
	if len(b) > 0 {
		s.chunks = append(s.chunks, stateChunk{b, b})
		s.size += len(b)
	}
	if end {
		s.ended, s.err = true, io.EOF
	}
	over := s.over()
	s.mu.Unlock()
	signal(s.came)
	for over {
		select {
		case <-s.taken:
		case <-done:
			return false
		}
		s.mu.Lock()
		over = s.over()
		s.mu.Unlock()
	}
	return true
}

// over says that the writer has to wait. mu is held.
func (s *statePipe) over() bool { return s.size > s.limit || len(s.chunks) > stateChunks }

// fail makes readers return err once the queue is empty, unless the stream has
// ended before.
func (s *statePipe) fail(err error) {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
	signal(s.came)
}

// Read implements io.Reader.
func (s *statePipe) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		s.mu.Lock()
		if len(s.chunks) > 0 {
			c := &s.chunks[0]
			n := copy(p, c.left)
			if c.left = c.left[n:]; len(c.left) == 0 {
				if len(s.spare) < spareStates && cap(c.buf) <= spareStateSize {
					s.spare = append(s.spare, c.buf)
				}
				*c = stateChunk{}
				s.chunks = s.chunks[1:]
			}
			s.size -= n
			s.mu.Unlock()
			signal(s.taken)
			return n, nil
		}
		err := s.err
		s.mu.Unlock()
		if err != nil {
			signal(s.came) // for the next reader
			return 0, err
		}
		<-s.came
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
