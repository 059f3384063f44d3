package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/bench/guest/workset"
)

// The back end speaks lines over a stream: the query is
//
//	WORKLOAD PAGE USER NUMBER
//
// and the answer a line with its length in bytes and its CRC-32C, and then as
// many bytes of rows. An answer of the length 0 is an error, whose text is the
// rest of the line.
const (
	maxQuery     = 256
	maxAnswer    = 64 << 10
	queryTimeout = 10 * time.Second
	// backEndUsers is how many accounts the back end keeps.
	backEndUsers = 1 << 16
	// maxBackEndConns bounds the back end's connections; others wait in the
	// kernel's queue.
	maxBackEndConns = 64
	maxIdleConns    = 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ServeBackEnd is the back-end simulator: it answers queries on l until ctx
// ends or l fails. It closes l and all connections before it returns.
func ServeBackEnd(ctx context.Context, l net.Listener) error {
	b := &backEnd{conns: map[net.Conn]bool{}}
	stop := context.AfterFunc(ctx, func() {
		l.Close()
		b.closeAll()
	})
	defer stop()
	defer b.wg.Wait()
	defer b.closeAll()
	defer l.Close()
	slots := make(chan struct{}, maxBackEndConns)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := l.Accept()
		if ctx.Err() != nil {
			if c != nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("back end: %w", err)
		}
		if !b.add(c) {
			c.Close()
			return nil
		}
		b.wg.Go(func() {
			b.serve(c)
			b.drop(c)
			<-slots
		})
	}
}

type backEnd struct {
	wg     sync.WaitGroup
	visits [backEndUsers]atomic.Uint32 // the accounts' state

	mu     sync.Mutex
	closed bool              // guarded by mu
	conns  map[net.Conn]bool // guarded by mu
}

func (b *backEnd) add(c net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.conns[c] = true
	return true
}

func (b *backEnd) drop(c net.Conn) {
	c.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
}

func (b *backEnd) closeAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for c := range b.conns {
		c.Close()
	}
}

func (b *backEnd) serve(c net.Conn) {
	in := bufio.NewReaderSize(c, maxQuery)
	var rows []byte
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return // the server has closed, or sent a line beyond all measure
		}
		var workload, page string
		var user, number uint64
		if _, err := fmt.Sscanf(string(line), "%s %s %d %d\n", &workload, &page, &user, &number); err != nil {
			fmt.Fprintf(c, "0 query %q: want WORKLOAD PAGE USER NUMBER\n", line) // the connection ends with it
			return
		}
		rows = b.rows(rows[:0], workload, page, user, number)
		head := fmt.Sprintf("%d %08x\n", len(rows), crc32.Checksum(rows, castagnoli))
		if _, err := (&net.Buffers{[]byte(head), rows}).WriteTo(c); err != nil {
			return
		}
	}
}

// rows makes the rows of an answer: as many as the query says, by the user.
func (b *backEnd) rows(to []byte, workload, page string, user, number uint64) []byte {
	visits := b.visits[user%backEndUsers].Add(1)
	r := workset.NewRandom(user<<20 ^ number ^ uint64(crc32.ChecksumIEEE([]byte(workload+page))))
	for i := range 4 + r.Below(12) {
		to = fmt.Appendf(to, "%s|%s|%d|%d|%09d|%s|%d.%02d\n", workload, page, i, user, r.Below(1e9),
			time.Unix(int64(r.Below(1<<30)), 0).UTC().Format(time.DateOnly), r.Below(5000), r.Below(100))
	}
	return strconv.AppendUint(append(to, "visits|"...), uint64(visits), 10)
}

// backEndClient asks the back end over a few connections that it keeps.
type backEndClient struct {
	dial func(context.Context) (net.Conn, error)

	mu     sync.Mutex
	closed bool           // guarded by mu
	idle   []*backEndConn // guarded by mu
}

type backEndConn struct {
	net.Conn
	in *bufio.Reader
}

// ask makes one query and appends the rows to dst. A connection that turns out
// to be gone is replaced once: the back end may have been restarted.
func (c *backEndClient) ask(ctx context.Context, dst []byte, workload, page string, user, number uint64) ([]byte, error) {
	for {
		conn, kept, err := c.conn(ctx)
		if err != nil {
			return dst, fmt.Errorf("ask the back end: %w", err)
		}
		out, err := conn.ask(dst, workload, page, user, number)
		if err == nil {
			c.put(conn)
			return out, nil
		}
		conn.Close()
		if !kept {
			return dst, fmt.Errorf("ask the back end: %w", err)
		}
	}
}

func (c *backEndConn) ask(dst []byte, workload, page string, user, number uint64) ([]byte, error) {
	if err := c.SetDeadline(time.Now().Add(queryTimeout)); err != nil {
		return dst, err
	}
	if _, err := fmt.Fprintf(c, "%s %s %d %d\n", workload, page, user, number); err != nil {
		return dst, err
	}
	line, err := c.in.ReadString('\n')
	if err != nil {
		return dst, err
	}
	var n int
	var sum uint32
	if _, err := fmt.Sscanf(line, "%d %x\n", &n, &sum); err != nil || n <= 0 || n > maxAnswer {
		return dst, fmt.Errorf("it said %q", line)
	}
	at := len(dst)
	dst = append(dst, make([]byte, n)...)
	if _, err := io.ReadFull(c.in, dst[at:]); err != nil {
		return dst[:at], err
	}
	if got := crc32.Checksum(dst[at:], castagnoli); got != sum {
		return dst[:at], fmt.Errorf("its answer of %d bytes has the checksum %08x, the header says %08x", n, got, sum)
	}
	return dst, nil
}

func (c *backEndClient) conn(ctx context.Context) (conn *backEndConn, kept bool, err error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, false, errors.New("the server is closed")
	}
	if n := len(c.idle); n > 0 {
		conn, c.idle = c.idle[n-1], c.idle[:n-1]
		c.mu.Unlock()
		return conn, true, nil
	}
	c.mu.Unlock()
	raw, err := c.dial(ctx)
	if err != nil {
		return nil, false, err
	}
	return &backEndConn{Conn: raw, in: bufio.NewReader(raw)}, false, nil
}

func (c *backEndClient) put(conn *backEndConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) == maxIdleConns {
		conn.Close()
		return
	}
	c.idle = append(c.idle, conn)
}

func (c *backEndClient) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, conn := range c.idle {
		conn.Close()
	}
	c.idle = nil
}
