package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/pagewarp/pagewarp/bench/guest/workset"
	"github.com/pagewarp/pagewarp/bench/specweb/model"
	web "github.com/pagewarp/pagewarp/bench/specweb/server"
	"github.com/pagewarp/pagewarp/internal/guestapi"
)

const (
	backEndSocket = "/backend.sock"
	// frontPort and frontTLSPort are where the web server listens, on the
	// loopback, behind a front.
	frontPort = 8080
	// redisPages is the working set beside redis, whose memory is its own.
	redisPages = 256
)

// begin makes the memory of the load and starts it.
func (s *server) begin(cfg guestapi.Config) error {
	if name, ok := strings.CutPrefix(cfg.Load, guestapi.SPECwebPrefix); ok {
		return s.beginWeb(cfg, name)
	}
	pages := cfg.WorkingSetMiB << 20 / workset.PageBytes
	if cfg.Load == guestapi.LoadRedis {
		pages = redisPages
	}
	set, err := workset.New(pages, cfg.Incompressible, s.badPage)
	if err != nil {
		return err
	}
	s.set = set
	touches := func() uint64 { _, _, n, _, _ := set.Counters(); return n }
	rewrites := func() uint64 { _, n, _, _, _ := set.Counters(); return n }
	switch cfg.Load {
	case "":
		if cfg.ChurnRate >= 0 {
			go churn(set, cfg.ChurnRate)
		}
		if cfg.Touch {
			s.ops = touches
			go touch(set, workset.AtRandom(pages))
		}
	case guestapi.LoadRandom:
		s.ops = touches
		go touch(set, workset.AtRandom(pages))
	case guestapi.LoadSweep:
		s.ops = touches
		go touch(set, workset.Sweep(pages))
	case guestapi.LoadZipf:
		s.ops = touches
		go touch(set, workset.HotSet(pages, cfg.ZipfExponent))
	case guestapi.LoadChurn:
		s.ops = rewrites
		go churn(set, max(cfg.ChurnRate, 0))
	case guestapi.LoadIdle:
		var ticks atomic.Uint64
		s.ops = ticks.Load
		go idle(&ticks)
	case guestapi.LoadRedis:
		if err := startRedis(cfg.WorkingSetMiB); err != nil {
			return err
		}
		s.ops = new(redisCounter).commands
	default:
		return fmt.Errorf("no such load: %s", cfg.Load)
	}
	if s.ops != nil {
		go s.recordOps()
	}
	return nil
}

// beginWeb starts the back end, as a process of its own, and makes the
// SPECweb-style server.
func (s *server) beginWeb(cfg guestapi.Config, name string) error {
	w, err := model.ByName(name)
	if err != nil {
		return err
	}
	backEnd, err := web.StartBackEnd(backEndSocket)
	if err != nil {
		return err
	}
	s.web, err = web.New(web.Config{
		MaxBytes: memTotal() / 10 * 9, // else the kernel ends init, and says nothing of why
		Workload: w, Sessions: cfg.Sessions, Scale: cfg.Scale, PoolMiB: cfg.WorkingSetMiB, Incompressible: cfg.Incompressible,
		DialBackEnd: func(ctx context.Context) (net.Conn, error) { return backEnd.Dial(ctx) }, OnBad: s.badPage,
	})
	if err != nil {
		return err
	}
	s.set = s.web.Pool()
	s.ops = func() uint64 { return s.web.Info().Requests }
	go s.recordOps()
	return nil
}

// listen opens the guest's ports: the web server's, and with a SPECweb-style
// load a second one for TLS; with a front, both are the front's.
func listen(cfg guestapi.Config) ([]net.Listener, error) {
	if cfg.Front == guestapi.FrontNginx {
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(frontPort))
		if err != nil {
			return nil, err
		}
		if err := startNginx(cfg); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		return []net.Listener{l}, nil
	}
	l, err := net.Listen("tcp", ":"+strconv.Itoa(cfg.Port))
	if err != nil {
		return nil, fmt.Errorf("listen on port %d: %w", cfg.Port, err)
	}
	if !strings.HasPrefix(cfg.Load, guestapi.SPECwebPrefix) {
		return []net.Listener{l}, nil
	}
	config, err := web.ServerTLS()
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	secure, err := net.Listen("tcp", ":"+strconv.Itoa(cfg.TLSPort))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on port %d: %w", cfg.TLSPort, err), l.Close())
	}
	return []net.Listener{l, tls.NewListener(secure, config)}, nil
}

// present says what is missing in the guest's image, if anything is.
func present(program string) error {
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("%w; boot the guest with initramfs-programs.cpio.gz, which 'make guest' builds", err)
	}
	return nil
}
