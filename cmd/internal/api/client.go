package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/pagewarp/pagewarp/relocate"
)

// maxReply bounds an answer: a thousand machines are well under 1 MiB.
const maxReply = 16 << 20

// maxEventLine bounds one line of the event stream.
const maxEventLine = 1 << 20

// Client talks to the daemon behind one socket. Safe for concurrent use.
type Client struct {
	socket  string
	timeout time.Duration
	http    *http.Client
}

// NewClient makes a client; timeout bounds each request but Events. Nothing is
// connected yet. Close it to free idle connections.
func NewClient(socket string, timeout time.Duration) *Client {
	d := net.Dialer{Timeout: 5 * time.Second}
	return &Client{socket: socket, timeout: timeout, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
		// A connection for each request: it costs nothing on a unix socket, and
		// one that is kept may be closed under the next request.
		DisableKeepAlives: true, DisableCompression: true,
	}}}
}

// Close frees idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Version asks who the daemon is.
func (c *Client) Version(ctx context.Context) (r VersionReply, err error) {
	return r, c.call(ctx, "GET", "version", nil, &r)
}

// Machines lists the adopted machines.
func (c *Client) Machines(ctx context.Context) ([]relocate.Machine, error) {
	var r MachinesReply
	return r.VMs, c.call(ctx, "GET", "vms", nil, &r)
}

// Machine is one adopted machine.
func (c *Client) Machine(ctx context.Context, name string) (m relocate.Machine, err error) {
	return m, c.call(ctx, "GET", "vms/"+url.PathEscape(name), nil, &m)
}

// Add adopts a running machine.
func (c *Client) Add(ctx context.Context, name, qmp string) (m relocate.Machine, err error) {
	return m, c.call(ctx, "POST", "vms", AddRequest{name, qmp}, &m)
}

// Remove forgets a machine, which runs on.
func (c *Client) Remove(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", "vms/"+url.PathEscape(name), nil, nil)
}

// Relocate starts a relocation and returns its first status.
func (c *Client) Relocate(ctx context.Context, name string, r RelocateRequest) (s relocate.Status, err error) {
	return s, c.call(ctx, "POST", "vms/"+url.PathEscape(name)+"/relocate", r, &s)
}

// Cancel rolls a relocation back; relocate.ErrTooLate past the switch-over.
func (c *Client) Cancel(ctx context.Context, name string) error {
	return c.call(ctx, "POST", "vms/"+url.PathEscape(name)+"/cancel", struct{}{}, nil)
}

// Cache asks what the host keeps of machines that have left.
func (c *Client) Cache(ctx context.Context) (r CacheReply, err error) {
	return r, c.call(ctx, "GET", "cache", nil, &r)
}

// CacheDrop removes what is kept of a machine; relocate.ErrNotCached.
func (c *Client) CacheDrop(ctx context.Context, vm string) error {
	return c.call(ctx, "DELETE", "cache/"+url.PathEscape(vm), nil, nil)
}

// Limits asks for the limits of the host's relocations together.
func (c *Client) Limits(ctx context.Context) (r Limits, err error) {
	return r, c.call(ctx, "GET", "limits", nil, &r)
}

// SetLimits changes the limits that q names and returns all of them.
func (c *Client) SetLimits(ctx context.Context, q LimitsRequest) (r Limits, err error) {
	return r, c.call(ctx, "PUT", "limits", q, &r)
}

// SetBandwidth changes the cap of a running relocation, in bytes per second; 0
// lifts it.
func (c *Client) SetBandwidth(ctx context.Context, name string, bytesPerSecond int64) error {
	return c.call(ctx, "POST", "vms/"+url.PathEscape(name)+"/bandwidth", BandwidthRequest{bytesPerSecond}, nil)
}

// Status asks for the relocations of the machine vm, or of all for "".
func (c *Client) Status(ctx context.Context, vm string) (r StatusReply, err error) {
	p := "status"
	if vm != "" {
		p += "?vm=" + url.QueryEscape(vm)
	}
	return r, c.call(ctx, "GET", p, nil, &r)
}

// Events calls f for every event after the given number, in order, until f
// fails, ctx ends, or, without follow, the newest has been seen. With follow
// the return value is never nil: io.EOF means that the daemon ended the stream.
// Heartbeats are left out.
func (c *Client) Events(ctx context.Context, after uint64, follow bool, f func(relocate.Event) error) error {
	q := "events?after=" + strconv.FormatUint(after, 10)
	if follow {
		q += "&follow=1"
	} else {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	res, err := c.do(ctx, "GET", q, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	// A daemon that hangs sends no heartbeat: three missed ones end the wait.
	dead := time.AfterFunc(3*Heartbeat, func() { res.Body.Close() })
	defer dead.Stop()
	sc := bufio.NewScanner(res.Body)
	sc.Buffer(make([]byte, 0, 4096), maxEventLine)
	for sc.Scan() {
		dead.Reset(3 * Heartbeat)
		var e relocate.Event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			return fmt.Errorf("read event %q: %w", sc.Text(), err)
		}
		if e.Kind == KindHeartbeat {
			continue
		}
		if err := f(e); err != nil {
			return err
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case sc.Err() != nil:
		return fmt.Errorf("read events: %w", sc.Err())
	case follow:
		return io.EOF
	}
	return nil
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	res, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(res.Body, maxReply))
		return err
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxReply)).Decode(out); err != nil {
		return fmt.Errorf("read answer to %s /%s/%s: %w", method, Version, path, err)
	}
	return nil
}

// do returns an answer below 400, with its body open.
func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://pagewarpd/"+Version+"/"+path, body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	if res.StatusCode < 400 {
		return res, nil
	}
	defer res.Body.Close()
	e := &Error{Status: res.StatusCode}
	b, _ := io.ReadAll(io.LimitReader(res.Body, MaxBody))
	if json.Unmarshal(b, e) != nil || e.Code == "" {
		return nil, fmt.Errorf("%s %s/%s: the daemon answered %s: %.200q; is it of another version?", method, Version, path, res.Status, b)
	}
	return nil, e
}

func (c *Client) transportError(ctx context.Context, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return context.Canceled
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return Errorf(CodeTimeout, "raise --timeout, or see what the daemon's log says", "the daemon on %s did not answer within %v", c.socket, c.timeout)
	}
	// A socket that closes in the middle of an answer is a daemon that died.
	var oe *net.OpError
	if errors.As(err, &oe) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
		if oe != nil {
			err = oe.Err
		}
		return &UnreachableError{Socket: c.socket, Err: err}
	}
	return fmt.Errorf("ask the daemon on %s: %w", c.socket, err)
}
