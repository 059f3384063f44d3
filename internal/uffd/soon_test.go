package uffd

import (
	"errors"
	"testing"
	"time"
)

func TestEagerness(t *testing.T) {
	const us, longest = time.Microsecond, 200 * time.Microsecond
	for _, c := range []struct{ now, took, want time.Duration }{
		{0, 10 * us, 25 * us}, // from none to an eighth
		{0, longest, 25 * us},
		{0, longest + us, 0},
		{25 * us, 10 * us, 25 * us}, // it came while it was tried for
		{25 * us, 30 * us, 50 * us}, // and after that
		{150 * us, 160 * us, longest},
		{longest, longest, longest},
		{longest, longest + us, 0}, // in vain
	} {
		if got := eagerness(c.now, c.took, longest); got != c.want {
			t.Errorf("after a wait of %v with %v: %v, want %v", c.took, c.now, got, c.want)
		}
	}
}

// However eager a reader is, it ends when it is told to, and gives up in time.
func TestSoonEnds(t *testing.T) {
	u, err := Create(CloseOnExec | NonBlock)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.API(0); err != nil {
		t.Fatal(err)
	}
	r, err := u.NewReader(ReaderConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var buf [1]Event
	r.eager = time.Hour
	r.Soon(time.Hour)
	if _, err := r.Wait(buf[:], 5*time.Millisecond); !errors.Is(err, ErrTimeout) {
		t.Errorf("in vain: %v", err)
	}
	if r.soon != 0 {
		t.Error("what was said of one wait holds for the next")
	}
	r.Soon(time.Hour)
	stopped := make(chan error, 1)
	go func() {
		_, err := r.ReadEvents(buf[:])
		stopped <- err
	}()
	r.Stop()
	select {
	case err := <-stopped:
		if !errors.Is(err, ErrStopped) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}
