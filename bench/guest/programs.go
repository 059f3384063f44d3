package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	web "github.com/pagewarp/pagewarp/bench/specweb/server"
	"github.com/pagewarp/pagewarp/internal/guestapi"
)

// Where Debian's packages have their programs.
const (
	redisServer = "/usr/bin/redis-server"
	nginxServer = "/usr/sbin/nginx"
)

// startRedis starts Redis as it is run for a cache: in memory only, which it
// may fill up to limitMiB, and then forgets what was used least recently.
func startRedis(limitMiB int) error {
	return startProgram(redisServer, guestapi.RedisPort,
		"--bind", "0.0.0.0", "--port", strconv.Itoa(guestapi.RedisPort), "--protected-mode", "no",
		"--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning",
		"--maxmemory", strconv.Itoa(limitMiB)+"mb", "--maxmemory-policy", "allkeys-lru")
}

// redisCounter asks Redis how many commands it has answered; its own questions
// are among them. For one goroutine.
type redisCounter struct {
	conn net.Conn
	in   *bufio.Reader
	last uint64
}

// commands returns the count, or the last one if Redis does not answer.
func (c *redisCounter) commands() uint64 {
	if err := c.ask(); err != nil && c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
	return c.last
}

func (c *redisCounter) ask() (err error) {
	if c.conn == nil {
		if c.conn, err = net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(guestapi.RedisPort))); err != nil {
			c.conn = nil
			return err
		}
		c.in = bufio.NewReader(c.conn)
	}
	// A command on a line of its own is as good as one in the protocol's form.
	if _, err := c.conn.Write([]byte("INFO stats\r\n")); err != nil {
		return err
	}
	head, err := c.in.ReadString('\n')
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(strings.Trim(head, "$\r\n"))
	if err != nil || n < 0 || n > 1<<16 {
		return fmt.Errorf("INFO answered %q", head)
	}
	body := make([]byte, n+2)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(body), "total_commands_processed:")
	count, _, _ := strings.Cut(rest, "\r\n")
	if v, err := strconv.ParseUint(count, 10, 64); err == nil {
		c.last = v
	}
	return nil
}

// startLimit is how long a program may take to listen, under an emulator.
const startLimit = 30 * time.Second

const nginxConf = `user root;
daemon off;
pid /nginx.pid;
error_log stderr warn;
worker_processes 1;
events { worker_connections 4096; }
http {
	access_log off;
	default_type application/octet-stream;
	client_body_temp_path /nginx-body;
	proxy_temp_path /nginx-proxy;
	fastcgi_temp_path /nginx-fastcgi;
	uwsgi_temp_path /nginx-uwsgi;
	scgi_temp_path /nginx-scgi;
	proxy_max_temp_file_size 0;
	keepalive_requests 1000000;
	upstream guest { server 127.0.0.1:%d; keepalive 64; }
	server {
		listen %d reuseport backlog=4096;
		listen %d ssl reuseport backlog=4096;
		ssl_certificate /nginx.crt;
		ssl_certificate_key /nginx.key;
		ssl_protocols TLSv1.2 TLSv1.3;
		location / {
			proxy_pass http://guest;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_read_timeout 300s;
		}
	}
}
`

// startNginx starts nginx on the guest's ports, before the web server.
func startNginx(cfg guestapi.Config) error {
	if err := present(nginxServer); err != nil {
		return err
	}
	cert, key, err := web.PEM()
	if err != nil {
		return err
	}
	if err := os.MkdirAll("/etc", 0o755); err != nil {
		return err
	}
	for path, content := range map[string][]byte{
		"/nginx.conf": fmt.Appendf(nil, nginxConf, frontPort, cfg.Port, cfg.TLSPort),
		"/nginx.crt":  cert, "/nginx.key": key,
		"/etc/passwd": []byte("root:x:0:0:root:/:/bin/false\n"), "/etc/group": []byte("root:x:0:\n"),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	return startProgram(nginxServer, cfg.Port, "-c", "/nginx.conf", "-e", "stderr")
}

// startProgram starts a program that is to run as long as the guest, and waits
// until it listens on the port. Its end is told on the console, and ends the
// guest.
func startProgram(path string, port int, args ...string) error {
	if err := present(path); err != nil {
		return err
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", path, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // how it ended may have gone to reap
	timeout := time.After(startLimit)
	for {
		c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			c.Close()
			break
		}
		select {
		case end := <-ended:
			return errors.Join(fmt.Errorf("start %s: it ended before it listened on port %d", path, port), end)
		case <-timeout:
			return fmt.Errorf("start %s: it does not listen on port %d after %s: %w", path, port, startLimit, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	go func() {
		fmt.Printf("%s %s ended: %v\n", guestapi.FailLine, path, <-ended)
		powerOff()
	}()
	return nil
}
