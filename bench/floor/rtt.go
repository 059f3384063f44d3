package floor

import (
	"context"
	"crypto/tls"
	"io"
	"math"
	"time"
)

const (
	requestBytes = 32
	answerBytes  = 40 + pageSize // a header and a page, as the engine answers
)

// RoundTrip measures count round trips of a 32 B request and an answer of a
// 40 B header and a 4 KiB page over one connection, both ends plain blocking
// socket programs. With tls the connection is TLS 1.3 by Go's crypto/tls, which
// is no floor but tells what encryption costs.
func RoundTrip(ctx context.Context, cpus CPUs, pair Pair, count int, withTLS bool) ([]time.Duration, error) {
	server, client, err := startPair(ctx, cpus, pair, withTLS,
		task{Role: "rtt-server"}, task{Role: "rtt-client", Count: count, Warm: count / 10})
	if err != nil {
		return nil, err
	}
	samples, err := client.wait(time.Nanosecond)
	if err != nil {
		server.stop()
		return nil, err
	}
	_, err = server.wait(time.Nanosecond)
	return samples, err
}

func rttServer(t *task) ([]uint32, error) {
	request, answer := make([]byte, requestBytes), make([]byte, answerBytes)
	c, err := t.conn()
	if err != nil {
		return nil, err
	}
	for {
		switch err := c.readFull(request); {
		case err == errEnd || err == io.EOF || err == io.ErrUnexpectedEOF:
			return nil, nil
		case err != nil:
			return nil, err
		}
		if err := c.writeFull(answer); err != nil {
			return nil, err
		}
	}
}

func rttClient(t *task) ([]uint32, error) {
	request, answer := make([]byte, requestBytes), make([]byte, answerBytes)
	samples := make([]uint32, t.Count)
	c, err := t.conn()
	if err != nil {
		return nil, err
	}
	for i := -t.Warm; i < t.Count; i++ {
		t0 := time.Now()
		if err := c.writeFull(request); err != nil {
			return nil, err
		}
		if err := c.readFull(answer); err != nil {
			return nil, err
		}
		if i >= 0 {
			samples[i] = nanoseconds(time.Since(t0))
		}
	}
	return samples, c.close()
}

// nanoseconds is a sample of 4 bytes: a round trip of over 4.29 s counts as that, and
// not as what is left of it.
func nanoseconds(d time.Duration) uint32 { return uint32(min(d, math.MaxUint32)) }

// wire is descriptor 3, raw or below TLS.
type wire struct{ tls *tls.Conn }

func (w wire) readFull(b []byte) error {
	if w.tls == nil {
		return readFull(3, b)
	}
	_, err := io.ReadFull(w.tls, b)
	return err
}

func (w wire) writeFull(b []byte) error {
	if w.tls == nil {
		return writeFull(3, b)
	}
	_, err := w.tls.Write(b)
	return err
}

func (w wire) close() error {
	if w.tls == nil {
		return nil
	}
	return w.tls.Close()
}
