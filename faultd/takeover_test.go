package faultd_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/internal/uffd"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

const (
	engineEnv = "PAGEWARP_ENGINE_CHILD"
	resTag    = 0x7e57
)

// engineArgs tell a child process what to run an engine on. Its descriptors 3,
// 4 and 5 are the userfaultfd, the memory's file and the residency's.
type engineArgs struct {
	Addr    uint64
	Pages   uint64
	Server  string
	Token   string
	Private bool
}

// engineMain is a daemon that is killed in a test, if this process is one.
func engineMain() {
	env := os.Getenv(engineEnv)
	if env == "" {
		return
	}
	if err := engineChild(env); err != nil {
		fmt.Fprintln(os.Stderr, "engine process:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func engineChild(env string) error {
	var a engineArgs
	if err := json.Unmarshal([]byte(env), &a); err != nil {
		return err
	}
	srv := &server{addr: a.Server}
	if _, err := hex.Decode(srv.token[:], []byte(a.Token)); err != nil {
		return err
	}
	mem, _, err := takeMemory(3, 4, &a)
	if err != nil {
		return err
	}
	rb, err := sysmem.MapShared(5, 0, int64(pagecache.Size(a.Pages)), true)
	if err != nil {
		return err
	}
	res, err := pagecache.Create(rb, a.Pages, resTag)
	if err != nil {
		return err
	}
	e, err := faultd.New(faultd.Config{
		Regions: []faultd.Region{{Region: region(a.Pages), Residency: res}}, Memory: mem, Open: srv.open(a.Pages),
		Bandwidth: 30 << 20, PrecacheChannels: 2, Log: quiet(),
	})
	if err != nil {
		return err
	}
	if err := e.Start(); err != nil {
		return err
	}
	fmt.Println("started")
	return e.Wait(context.Background()) // or until killed
}

func takeMemory(ufd, file int, a *engineArgs) (faultd.Memory, io.Closer, error) {
	u, err := uffd.Open(ufd)
	if err != nil {
		return faultd.Memory{}, nil, err
	}
	cfg := faultd.UFFDConfig{FD: u, Areas: []faultd.Area{{Region: region(a.Pages), Addr: a.Addr, FD: file}}}
	if a.Private {
		p, err := faultd.NewPrivate(cfg)
		if err != nil {
			return faultd.Memory{}, nil, err
		}
		return p.Memory(), p, nil
	}
	s, err := faultd.NewShared(cfg)
	if err != nil {
		return faultd.Memory{}, nil, err
	}
	return s.Memory(), s, nil
}

// The daemon is killed (-9) in the middle of a drain under load. The machine's
// threads wait, a second engine takes the userfaultfd and the residency over,
// and every page, those that the machine has written since included, is right.
func TestTakeOverAfterKill(t *testing.T) {
	const pages = 8 << 10
	img := newImage(t, pages, 21)
	for round := range 6 {
		t.Run("", func(t *testing.T) { takeOver(t, img, round%2 == 1, time.Duration(5+round*25)*time.Millisecond) })
	}
}

func takeOver(t *testing.T, img *image, private bool, life time.Duration) {
	ctx := withDeadline(t, 40*time.Second)
	srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	proc, err := touch.Start(ctx)
	must(t, err)
	t.Cleanup(proc.Kill)
	ufd, err := proc.Userfaultfd()
	must(t, err)
	size := int64(img.pages) * pageSize
	file, err := sysmem.CreateMemfd("destination", size, 0)
	must(t, err)
	defer unix.Close(file)
	resFile, err := sysmem.CreateMemfd("residency", int64(pagecache.Size(img.pages)), 0)
	must(t, err)
	defer unix.Close(resFile)
	var reg *touch.Region
	if private {
		reg, err = proc.MapPrivate(size)
	} else {
		reg, err = proc.MapShared(file, size)
	}
	must(t, err)

	args := engineArgs{Addr: reg.Addr, Pages: img.pages, Server: srv.addr, Token: hex.EncodeToString(srv.token[:]), Private: private}
	env, err := json.Marshal(args)
	must(t, err)
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), engineEnv+"="+string(env))
	cmd.Stderr = os.Stderr
	for _, fd := range []int{ufd, file, resFile} {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		must(t, err)
		f := os.NewFile(uintptr(n), "handed over")
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = io.ReadFull(out, make([]byte, len("started\n")))
	must(t, err)

	want := append([]uint32(nil), img.sums...)
	buf := make([]byte, pageSize)
	writes := shuffled(img.pages, 31)[:200]
	for _, p := range writes {
		touch.Fill(buf, p, 13)
		want[p] = touch.Sum(buf)
	}
	var load sync.WaitGroup
	load.Go(func() {
		for _, p := range writes {
			if err := reg.Write(p, 13); err != nil {
				t.Errorf("write page %d: %v", p, err)
				return
			}
		}
	})
	load.Go(func() {
		if _, err := reg.Touch(shuffled(img.pages, 32)[:img.pages/2], false, 8); err != nil {
			t.Error(err)
		}
	})
	timer := time.NewTimer(life) // how far the daemon gets, not a wait for it
	<-timer.C
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed, which is an error

	mem, closer, err := takeMemory(ufd, file, &args)
	must(t, err)
	defer closer.Close()
	rb, err := sysmem.MapShared(resFile, 0, int64(pagecache.Size(img.pages)), true)
	must(t, err)
	defer sysmem.Unmap(rb)
	res, err := pagecache.Attach(rb, img.pages, resTag)
	must(t, err)
	lost := res.Recover()
	before := res.Counts()
	e := start(t, faultd.Config{Regions: []faultd.Region{{Region: region(img.pages), Residency: res}}, Memory: mem,
		Open: srv.open(img.pages), PrecacheChannels: 2, Log: quiet()})
	if err := e.Wait(ctx); err != nil {
		t.Fatalf("drain by the second engine: %v\n%+v", err, e.Stats())
	}
	load.Wait()
	m := &machine{proc: proc, reg: reg}
	m.verify(t, want)
	s := e.Stats()
	if got := s.PagesDemand + s.PagesPrecache + s.PagesZero; got != before.Absent {
		t.Errorf("the second engine brought %d pages, %d were missing", got, before.Absent)
	}
	if before.Absent == 0 {
		t.Error("the first engine had drained everything: nothing was taken over")
	}
	t.Logf("private %v: killed with %d pages absent and %d claimed", private, before.Absent, lost)
	e.Detach()
}
