package main

import (
	"net"
	"testing"
)

// listenNotify plays the service manager: it receives what sd_notify sends.
func listenNotify(t *testing.T, path string) (<-chan string, error) {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	t.Setenv("NOTIFY_SOCKET", path)
	states, done := make(chan string, 16), make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			states <- string(b[:n])
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return states, nil
}
