package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	web "github.com/pagewarp/pagewarp/bench/specweb/server"
	"github.com/pagewarp/pagewarp/internal/guestapi"
)

func main() {
	web.Main() // a second process of this program is the SPECweb-style back end
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the init of a test VM and does nothing elsewhere; build its image with 'make guest'")
		os.Exit(2)
	}
	err := boot()
	// Init never returns: the kernel would panic.
	fmt.Printf("%s %v\n", guestapi.FailLine, err)
	powerOff()
}

func boot() error {
	start := time.Now()
	if err := mountAll(); err != nil {
		return err
	}
	go reap()
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	cfg, err := guestapi.ParseCmdline(string(cmdline))
	if err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := setUpNetwork(cfg.IP, cfg.Gateway); err != nil {
		return err
	}
	// With as many Ps as vCPUs the memory work would keep the web server
	// waiting for a scheduler slice of 10 ms; with Ps to spare, the kernel's
	// own scheduler shares the vCPU by priority.
	runtime.GOMAXPROCS(runtime.NumCPU() + 4)

	s := newServer(start)
	if err := s.begin(cfg); err != nil {
		return err
	}
	ls, err := listen(cfg)
	if err != nil {
		return err
	}
	fmt.Printf("%s ip=%s port=%d ws_mib=%d boot_ms=%d\n", guestapi.ReadyLine,
		cfg.IP.Addr(), cfg.Port, cfg.WorkingSetMiB, time.Since(start).Milliseconds())
	return web.Serve(context.Background(), s.handler(), ls...)
}

// reap collects the children that the kernel hands to init.
func reap() {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGCHLD)
	for range ch {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if pid <= 0 {
				break
			}
		}
	}
}

func powerOff() {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Printf("%s power off: %v\n", guestapi.FailLine, err)
	}
	select {}
}
