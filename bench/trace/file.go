package trace

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
)

// decode reads and checks a trace. It is bounded: a packed file may unfold.
func (t *Trace) decode(r io.Reader, packed bool) error {
	if packed {
		z, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		r = z
	}
	l := &io.LimitedReader{R: r, N: maxFile}
	if err := json.NewDecoder(l).Decode(t); err != nil {
		if l.N == 0 {
			return fmt.Errorf("it is longer than %d bytes", maxFile)
		}
		return err
	}
	return t.check()
}
