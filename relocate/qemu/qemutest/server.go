package qemutest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// Greeting is that of a QEMU 7.2.
const Greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "test"}, "capabilities": ["oob"]}}`

// Command is one command as the client sent it.
type Command struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
}

// Reply answers one command on its connection. Lines come out whole.
type Reply func(c *Conn, cmd Command)

// Return answers with a value.
func Return(v any) Reply {
	return func(c *Conn, _ Command) { c.Send(map[string]any{"return": v}) }
}

// Fail answers with an error of QEMU's.
func Fail(class, desc string) Reply {
	return func(c *Conn, _ Command) {
		c.Send(map[string]any{"error": map[string]string{"class": class, "desc": desc}})
	}
}

// Stall never answers.
func Stall(*Conn, Command) {}

// HangUp closes the connection instead of an answer.
func HangUp(c *Conn, _ Command) { c.nc.Close() }

// Raw answers with these bytes, as they are.
func Raw(s string) Reply {
	return func(c *Conn, _ Command) { c.Raw(s) }
}

// Conn is one client's connection.
type Conn struct {
	nc net.Conn
	mu sync.Mutex // one line at a time
}

// Send writes one JSON line. A client that has gone is no error.
func (c *Conn) Send(v any) {
	line, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("qemutest: cannot encode %T: %v", v, err)) // programmer's mistake
	}
	c.Raw(string(line) + "\r\n") // QEMU ends lines so
}

// Raw writes bytes.
func (c *Conn) Raw(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nc.SetWriteDeadline(time.Now().Add(5 * time.Second))
	c.nc.Write([]byte(s))
}

// Event sends an event with a time of QEMU's.
func (c *Conn) Event(name string, at time.Time, data any) {
	c.Send(map[string]any{
		"event": name, "data": data,
		"timestamp": map[string]int64{"seconds": at.Unix(), "microseconds": int64(at.Nanosecond() / 1000)},
	})
}

// Server is a QMP server on a unix socket that takes one client at a time.
type Server struct {
	ln net.Listener
	wg sync.WaitGroup

	mu       sync.Mutex
	greeting string           // guarded by mu
	replies  map[string]Reply // guarded by mu
	conn     *Conn            // guarded by mu: the present client
	seen     []string         // guarded by mu
	closed   bool             // guarded by mu
}

// Listen starts a server with the usual greeting. It knows qmp_capabilities and
// query-cpus-fast (one vCPU, whose thread is the calling process); anything else
// gets CommandNotFound until Handle.
func Listen(path string) (*Server, error) {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	s := &Server{ln: ln, greeting: Greeting + "\r\n", replies: map[string]Reply{
		"qmp_capabilities": Return(struct{}{}),
		"query-cpus-fast":  Return([]map[string]any{{"thread-id": os.Getpid()}}),
	}}
	s.wg.Add(1)
	go s.serve()
	return s, nil
}

// Handle sets the answer to a command.
func (s *Server) Handle(command string, r Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replies[command] = r
}

// Greet sets what the next client is greeted with; "" is silence.
func (s *Server) Greet(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.greeting = line
}

// Conn is the present client's connection, or nil.
func (s *Server) Conn() *Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn
}

// Seen lists the commands received so far.
func (s *Server) Seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.seen...)
}

// Close ends the server and its client's connection.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	if s.conn != nil {
		s.conn.nc.Close()
	}
	s.mu.Unlock()
	s.ln.Close()
	s.wg.Wait()
}

func (s *Server) serve() {
	defer s.wg.Done()
	for {
		nc, err := s.ln.Accept()
		if err != nil {
			return
		}
		c := &Conn{nc: nc}
		s.mu.Lock()
		s.conn = c
		greeting, closed := s.greeting, s.closed
		s.mu.Unlock()
		if closed {
			nc.Close()
			return
		}
		c.Raw(greeting)
		s.talk(c)
		nc.Close()
	}
}

func (s *Server) talk(c *Conn) {
	in := bufio.NewScanner(c.nc)
	for in.Scan() {
		var cmd Command
		if err := json.Unmarshal(in.Bytes(), &cmd); err != nil {
			Fail("GenericError", "Invalid JSON syntax")(c, cmd)
			continue
		}
		s.mu.Lock()
		s.seen = append(s.seen, cmd.Execute)
		r := s.replies[cmd.Execute]
		s.mu.Unlock()
		if r == nil {
			r = Fail("CommandNotFound", "The command "+cmd.Execute+" has not been found")
		}
		r(c, cmd)
	}
}
