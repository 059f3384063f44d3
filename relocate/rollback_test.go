package relocate

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// stopped is a machine in the middle of its switch-over, the guest having stopped.
func stopped(t *testing.T, h *testHost) *outgoing {
	t.Helper()
	vm := vmtest.Start(t, h.dir)
	mon, err := qemu.Connect(t.Context(), vm.QMP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mon.Close() })
	desc, err := mon.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mig, err := mon.PrepareSource(t.Context())
	if err == nil {
		err = mon.Pause(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	token, err := newToken()
	if err != nil {
		t.Fatal(err)
	}
	o := &outgoing{transfer: newTransfer(h.Host, &record{
		Token: token, VM: "web1", Role: RoleSource, Phase: PhaseFrozen, WasRun: true, Saved: mig.Saved(),
		QMP: vm.QMP, PID: desc.PID, StartTime: desc.Start,
	}), vm: mon, mig: mig}
	t.Cleanup(func() { o.cancel(nil) })
	return o
}

// TestRollbackOutlastsQEMU: what made a relocation fail is often what has QEMU hang, too. The
// guest is resumed when that is over, also where the monitor's connection was lost.
func TestRollbackOutlastsQEMU(t *testing.T) {
	for _, lost := range []bool{false, true} {
		h := startHost(t, vmtest.Dir(t), "a", func(c *HostConfig) {
			c.deadlines = impatient
			c.deadlines.rollback = time.Second
		})
		o := stopped(t, h)
		if lost {
			o.vm.Close()
		}
		if err := unix.Kill(o.rec.PID, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { defer close(ended); o.rollback(nil, nil, errors.New("its time is over")) }()
		vmtest.Wait(t, "an attempt to fail", func() bool {
			s := o.Status()
			if s.Phase.Final() {
				t.Errorf("connection lost %v: it is %s: %s", lost, s.Phase, s.Error)
			}
			return s.Phase.Final() || strings.Contains(s.Error, "does not answer")
		})
		if err := unix.Kill(o.rec.PID, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		<-ended
		if s := o.Status(); s.Phase != PhaseRolledBack {
			t.Errorf("connection lost %v: in the end it is %s: %s", lost, s.Phase, s.Error)
		}
		mon := o.vm
		if o.again != nil {
			mon = o.again
			defer mon.Close()
		}
		if s, err := mon.RunState(t.Context()); err != nil || !s.Running {
			t.Errorf("connection lost %v: the guest is %+v, %v", lost, s, err)
		}
	}
}

// TestRollbackWithAPeerThatDoesNotRead: a destination whose VMM takes no more of its state is
// alive and reads nothing. The guest, which stands still, does not wait for it to be told.
func TestRollbackWithAPeerThatDoesNotRead(t *testing.T) {
	h := startHost(t, vmtest.Dir(t), "a", nil)
	o := stopped(t, h)
	p := startPeer(t, transport.Offer{Features: transport.AllFeatures}, nil)
	conn, err := tcp.Dial(t.Context(), p.l.Addr().String(), tcp.Options{Hello: transport.Hello{
		Kind: transport.Control, Role: transport.Source, Epoch: firstEpoch, Token: tokenBytes(o.rec.Token), Features: transport.AllFeatures,
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctl, err := newControl(o.ctx, conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := p.l.Accept(t.Context()) // it answers PING, and has 4 MiB of room for state
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	listener, err := qemu.ListenState(h.dir, os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: listener}
	sent := make(chan error, 1)
	r.wg.Go(func() { sent <- r.run(t.Context(), os.Getpid(), time.Minute, ctl, &o.savedAt) })
	state, err := net.Dial("unix", strings.TrimPrefix(listener.URI(), "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	go func() { state.Write(make([]byte, 256<<20)) }() // as QEMU would: it ends with the connection
	last, since := int64(-1), time.Now()
	for time.Since(since) < 500*time.Millisecond { // until it stands
		if _, out := conn.Bytes(); out != last {
			last, since = out, time.Now()
		}
		time.Sleep(5 * time.Millisecond)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); r.stop(); o.rollback(ctl, nil, errors.New("its time is over")) }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the rollback waits for the peer to read")
		theirs.Close()
		<-ended
	}
	r.wait()
	if err := <-sent; err == nil {
		t.Error("all of the state was sent: the peer reads")
	}
	if s, err := o.vm.RunState(t.Context()); err != nil || !s.Running {
		t.Errorf("the guest is %+v, %v", s, err)
	}
}
