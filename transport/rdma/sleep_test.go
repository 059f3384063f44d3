package rdma

import (
	"errors"
	"sync"
	"testing"
)

// Whoever wakes a channel while it is closed writes to its eventfd or to nothing, never to
// what has that number next. The race detector sees it.
func TestWakeWhileShut(t *testing.T) {
	var s sleeper
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	s.sleeping.Store(true) // as whoever wakes it has seen it
	var wg sync.WaitGroup
	wg.Go(s.wake)
	wg.Go(func() { s.breakDown(errors.New("port error")) })
	s.shut()
	wg.Wait()
	s.wake()
	if s.wakeFD != -1 {
		t.Errorf("descriptor %d is left", s.wakeFD)
	}
}
