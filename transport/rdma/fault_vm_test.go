//go:build rdmavm

package rdma

import (
	"errors"
	"maps"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/softroce"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/transporttest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const pageSize = 4096

// A key that is not the source's: the READ is refused, nothing of it is installed,
// and the pages come by FETCH.
func TestWrongKey(t *testing.T) { eachWay(t, testWrongKey) }

func testWrongKey(t *testing.T, o rigOptions) {
	s := newStream(t, 2048, o)
	s.ready(t)
	s.receive(s.post(0, 1024))
	reads, _, _ := counts(s.f)
	if reads == 0 {
		t.Fatal("nothing came by READ")
	}
	s.spoil()
	s.receive(s.post(1024, 1024))
	s.fell("remote access error")
	s.whole(2048)
	if lent, back := s.sink.Lending(); (lent > 0) != o.place || (back > 0) != o.place {
		t.Errorf("%d pages were lent, %d taken back", lent, back)
	}
	if after, _, _ := counts(s.f); after != reads {
		t.Errorf("%d READs completed with a wrong key", after-reads)
	}
}

// A READ that reaches past the registered memory is refused as a whole.
func TestReadPastTheEnd(t *testing.T) { eachWay(t, testReadPastTheEnd) }

func testReadPastTheEnd(t *testing.T, o rigOptions) {
	s := newStream(t, 1024, o)
	s.ready(t)
	s.f.mu.Lock()
	ws := s.f.table.regions[1].windows[0]
	last := &ws[len(ws)-1]
	last.addr += uint64(last.count-1) * pageSize // all but its first page lie outside
	if last.count == 1 {
		last.addr += pageSize
	}
	s.f.mu.Unlock()
	s.receive(s.post(0, 1024))
	s.fell("remote access error")
	s.whole(1024)
}

// A source whose region is smaller than it said: what it maps does not end where a
// chunk or the region does, which ends the channel.
func TestRegionSizeLie(t *testing.T) {
	lie := []transport.Region{{ID: 1, Name: "ram", Pages: 4096, PageSize: pageSize}}
	s := newStream(t, 1024, rigOptions{regions: lie})
	for i := 0; !s.f.Up(); i++ {
		if i > 5000 {
			t.Fatal("RDMA does not come up")
		}
		time.Sleep(time.Millisecond)
	}
	s.post(0, 512)
	var c transport.Completion
	err := s.f.Receive(s.sink, &c)
	if !errors.Is(err, transport.ErrMalformed) {
		t.Errorf("the channel ended with %v", err)
	}
	if got, held := s.sink.Counts(); got != 0 || held != 0 {
		t.Errorf("%d pages are resident, %d reserved", got, held)
	}
	if n := len(s.f.Outstanding(nil)); n != 8 {
		t.Errorf("%d fetches are outstanding, want all 8", n)
	}
}

// The source's queue pair goes away in mid-stream: the READs under way end by their
// retries or, where the device does not count them (soft-RoCE), by our deadline, and
// all comes by FETCH.
func TestSourceGone(t *testing.T) { eachWay(t, testSourceGone) }

func testSourceGone(t *testing.T, o rigOptions) {
	o.fetch.DeadAfter = time.Second
	s := newStream(t, 4096, o)
	s.ready(t)
	s.receive(s.post(0, 1024))
	n := s.post(1024, 3072)
	s.a.off()
	s.receive(n)
	s.fell("RDMA by rxe0")
	s.whole(4096)
	s.sleeps()
}

// Where nothing goes on by FETCH, a page whose READ in place failed, was cut off or was
// still under way is absent and empty, claimed by nobody and written to by nobody.
func TestInPlaceFailed(t *testing.T) {
	for name, hurt := range map[string]func(*stream){
		"wrong key":      (*stream).spoil,
		"source gone":    func(s *stream) { s.a.off() },
		"channel closed": func(s *stream) { time.AfterFunc(5*time.Millisecond, func() { s.f.Close() }) },
		"connection cut": func(s *stream) { s.src.CloseWith(0, "") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, 4096, rigOptions{place: true, fetch: FetchOptions{Only: true, DeadAfter: time.Second}})
			s.ready(t)
			s.receive(s.post(0, 1024))
			hurt(s)
			var fs []transport.Fetch
			for p := uint64(1024); p < 4096; p += 64 {
				s.id++
				fs = append(fs, transport.Fetch{ID: s.id, Range: transport.Range{Region: 1, First: p, Count: 64}})
			}
			err := s.f.Fetch(fs) // which the end may be seen by
			var c transport.Completion
			for err == nil {
				err = s.f.Receive(s.sink, &c)
			}
			there, held := s.sink.Counts()
			lent, back := s.sink.Lending()
			if held != 0 || there < 1024 || lent == 0 {
				t.Errorf("%d pages are there, %d claimed; %d were lent, %d taken back (%v)", there, held, lent, back, err)
			}
			if name == "wrong key" && back == 0 {
				t.Error("no page was taken back")
			}
			s.f.Close()
			s.sink.CheckUntouched(t)
			s.sink.Check(t, s.im, transport.Range{Region: 1, Count: 1024})
			t.Logf("%d pages there, %d lent, %d taken back: %v", there, lent, back, err)
		})
	}
}

// The link goes down in mid-stream.
func TestLinkDown(t *testing.T) {
	link, err := netlink.LinkByName(softroce.Netdev)
	if err != nil {
		t.Fatal(err)
	}
	s := newStream(t, 4096, rigOptions{place: true})
	s.ready(t)
	s.receive(s.post(0, 1024))
	n := s.post(1024, 3072)
	defer linkDown(t, link, s.f.dev)()
	s.receive(n)
	await(t, "the end of RDMA", func() bool {
		n := s.post(0, 64) // whole pages that are dropped; it has Receive look
		s.receive(n)
		return !s.f.Up()
	})
	s.fell("port error")
	s.whole(4096)
}

// linkDown takes the link down; up waits until dev is of use again.
func linkDown(t *testing.T, link netlink.Link, dev *Device) (up func()) {
	t.Helper()
	if err := netlink.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := netlink.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
		await(t, "the port to be active again", func() bool {
			ports, err := List()
			return err == nil && len(ports) == 1 && ports[0].Problem == ""
		})
		await(t, "the device to be of use to new channels", func() bool {
			cancel, err := dev.onFailure(func(error) {})
			if err == nil {
				cancel()
			}
			return err == nil
		})
	}
}

func await(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// What does not fit into the budget goes by FETCH, and somebody is told.
func TestBudget(t *testing.T) {
	s := newStream(t, 1024, rigOptions{export: ExportOptions{Budget: 1 << 20}})
	await(t, "RDMA", s.f.Up)
	s.receive(s.post(0, 1024))
	s.whole(1024)
	if reads, _, beneath := counts(s.f); reads != 0 || beneath != 16 {
		t.Errorf("%d READs, %d fetches beneath; want none and all 16", reads, beneath)
	}
	select {
	case err := <-s.trouble:
		if !strings.Contains(err.Error(), "budget") {
			t.Error(err)
		}
	default:
		t.Error("nobody was told")
	}
	if n := s.e.Registered(); n != 0 {
		t.Errorf("%d bytes are registered", n)
	}
}

// soft-RoCE of this kernel has no on-demand paging: who asks for it is told. That of
// later ones has, and is known by its attribute.
func TestNoOnDemandPaging(t *testing.T) {
	d := testDevice(t)
	e, err := NewExport(d, nil, ExportOptions{Pin: PinODP})
	if err == nil {
		e.Close()
	}
	if err == nil || !strings.Contains(err.Error(), softroce.Device+" has no on-demand paging") {
		t.Error(err)
	}
	if !softRoCE(softroce.Device) || softRoCE("mlx5_0") {
		t.Error("soft-RoCE is not told from others")
	}
}

// Without CAP_IPC_LOCK the limit of locked memory counts, and is named.
func TestMemlock(t *testing.T) {
	d := testDevice(t)
	mem := transporttest.Memory(t, 1<<20)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // it ends with the goroutine: its capabilities are gone
		err := without(unix.CAP_IPC_LOCK)
		var old unix.Rlimit
		if err == nil {
			err = unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 64 << 10, Max: unix.RLIM_INFINITY}, &old)
		}
		if err != nil {
			failed <- err
			return
		}
		defer unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &old, nil)
		r, err := d.register(mem, landing)
		if err == nil {
			r.close()
		}
		failed <- err
	}()
	if err := <-failed; err == nil || !errors.Is(err, unix.ENOMEM) || !strings.Contains(err.Error(), "RLIMIT_MEMLOCK is 65536") {
		t.Errorf("1 MiB with a limit of 64 KiB: %v", err)
	}
}

// resources counts the verbs objects of the device.
func resources(t *testing.T) map[string]uint64 {
	t.Helper()
	n, err := softroce.Objects()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Setting sessions up and taking them down leaves no object behind.
func TestNothingLeaks(t *testing.T) {
	before := resources(t)
	const sessions = 10
	for range sessions {
		t.Run("session", func(t *testing.T) {
			s := newStream(t, 64, rigOptions{})
			s.ready(t)
			s.receive(s.post(0, 64))
		})
	}
	after := resources(t)
	for name, n := range after {
		if n != before[name] {
			t.Errorf("%d %s objects after %d sessions, %d before", n, name, sessions, before[name])
		}
	}
	t.Logf("%d sessions; objects %v", sessions, after)
}

// Nor do queue pairs and registrations by the thousand, or by RDMA_SETUPS of them;
// every hundredth pair carries a READ.
func TestManySetUps(t *testing.T) {
	many := 1000
	if s := os.Getenv("RDMA_SETUPS"); s != "" {
		var err error
		if many, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	d := testDevice(t)
	mem := transporttest.Memory(t, 1<<20)
	before, files, begin := resources(t), openFiles(t), time.Now()
	for n := range many {
		setUp(t, d, mem, n%100 == 0)
	}
	if after := resources(t); !maps.Equal(before, after) {
		t.Errorf("objects %v after %d set-ups, %v before", after, many, before)
	}
	if now := openFiles(t); now != files {
		t.Errorf("%d open files after %d set-ups, %d before", now, many, files)
	}
	t.Logf("%d set-ups of two queue pairs and two registrations in %v; objects %v", many, time.Since(begin).Round(time.Millisecond), before)
}

func setUp(t *testing.T, d *Device, mem []byte, use bool) {
	t.Helper()
	r, err := d.register(mem, readable)
	if err != nil {
		t.Fatal(err)
	}
	stage, err := d.register(mem[:pageSize], landing)
	if err != nil {
		t.Fatal(err)
	}
	var qs [2]*queue
	var es [2]endpoint
	for i := range qs {
		if qs[i], err = d.dev.queue(16); err != nil {
			t.Fatal(err)
		}
		es[i] = d.endpoint(qs[i], 4)
	}
	for i := range qs {
		if err := qs[i].connect(&es[1-i], es[i].psn, i == 1); err != nil {
			t.Fatal(err)
		}
	}
	if use {
		if _, err := qs[0].post([]read{{id: 7, local: addressOf(mem), remote: addressOf(mem[pageSize:]), length: pageSize, lkey: stage.lkey, rkey: r.rkey}}); err != nil {
			t.Fatal(err)
		}
		var out [1]done
		if n, err := qs[0].poll(out[:], 5*time.Second); n != 1 || err != nil || out[0].status != 0 || out[0].id != 7 {
			t.Fatalf("%d completions, %v: %+v", n, err, out)
		}
	}
	for _, q := range qs {
		q.close()
	}
	if err := errors.Join(r.close(), stage.close()); err != nil {
		t.Fatal(err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
