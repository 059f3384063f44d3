package specweb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/pagewarp/pagewarp/bench/specweb/model"
)

const (
	// Backoff is how long a session waits after an error before a new one takes
	// its place: a cut network brings no storm of retries.
	Backoff = 100 * time.Millisecond
	// MaxSessions bounds the simultaneous sessions.
	MaxSessions = 20_000

	maxBody = 128 << 20
)

// Config says what load to make. Fields without a default must be given.
type Config struct {
	// Workload is model.Banking, model.Ecommerce or model.Support.
	Workload string
	// Plain and Secure are the server's URLs without and with TLS, such as
	// http://10.77.0.100:80 and https://10.77.0.100:443. A workload that needs
	// one of the two only is content with that.
	Plain, Secure string
	// Sessions is the number of simultaneous sessions; in an open loop it bounds
	// the pages under way.
	Sessions int
	// Scale multiplies think times and data sizes, 0 < Scale <= 1, by default 1.
	// The server must run with the same.
	Scale float64
	// Seed makes the sessions' ways, think times and downloads repeatable.
	Seed uint64
	// Ramp spreads the start of the sessions over this time.
	Ramp time.Duration
	// Rate is the pages a second of an open loop; 0 is a closed loop.
	Rate float64
	// Deadline bounds one request, by default 10 s, and longer for downloads.
	Deadline time.Duration
	// DialTimeout bounds one connection attempt, by default 250 ms, after which
	// the next follows within the request's deadline: the kernel repeats a lost
	// SYN only after a second, which would pass for blackout.
	DialTimeout time.Duration
	// Dial replaces net.Dialer's DialContext.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// MaxSamples bounds the memory: pages beyond it are counted as dropped and
	// not noted. By default 4 million, of 32 bytes each.
	MaxSamples int
}

// complete fills in the defaults and checks what was given.
func (c *Config) complete() (*model.Workload, error) {
	w, err := model.ByName(c.Workload)
	if err != nil {
		return nil, err
	}
	if c.Sessions < 1 || c.Sessions > MaxSessions {
		return nil, fmt.Errorf("%d sessions: want 1 to %d", c.Sessions, MaxSessions)
	}
	c.Scale = or(c.Scale, 1)
	if !(c.Scale > 0 && c.Scale <= 1) {
		return nil, fmt.Errorf("scale %g: want more than 0, and 1 at most", c.Scale)
	}
	if !(c.Rate >= 0 && c.Rate <= 1e6) {
		return nil, fmt.Errorf("open loop of %g pages/s: want a rate from 0 (closed loop) to a million", c.Rate)
	}
	if c.Ramp < 0 || c.Deadline < 0 || c.DialTimeout < 0 || c.MaxSamples < 0 {
		return nil, errors.New("a negative time, or number of samples")
	}
	if err := c.checkURLs(w); err != nil {
		return nil, err
	}
	c.Deadline = or(c.Deadline, 10*time.Second)
	c.DialTimeout = or(c.DialTimeout, 250*time.Millisecond)
	c.MaxSamples = or(c.MaxSamples, 4<<20)
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	return w, nil
}

func (c *Config) checkURLs(w *model.Workload) error {
	for _, u := range []struct{ text, scheme string }{{c.Plain, "http"}, {c.Secure, "https"}} {
		if u.text == "" {
			continue
		}
		parsed, err := url.Parse(u.text)
		if err != nil || parsed.Scheme != u.scheme || parsed.Host == "" || (parsed.Path != "" && parsed.Path != "/") {
			return fmt.Errorf("server %q: want %s://HOST:PORT", u.text, u.scheme)
		}
	}
	for i := range w.Pages {
		switch p := &w.Pages[i]; {
		case p.TLS && c.Secure == "":
			return fmt.Errorf("workload %s uses TLS (page %s): give the server's https:// address", w.Name, p.Name)
		case !p.TLS && c.Plain == "":
			return fmt.Errorf("workload %s has pages without TLS (%s): give the server's http:// address", w.Name, p.Name)
		}
	}
	return nil
}

func or[T comparable](v, byDefault T) T {
	var zero T
	if v == zero {
		return byDefault
	}
	return v
}
