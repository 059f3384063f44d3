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
)

// TestRollbackWithAPeerThatDoesNotRead: a destination whose VMM takes no more of its state is
// alive and reads nothing. The guest, which stands still, does not wait for it to be told.
func TestRollbackWithAPeerThatDoesNotRead(t *testing.T) {
	h := startHost(t, vmtest.Dir(t), "a", nil)
	vm := vmtest.Start(t, h.dir)
	mon, err := qemu.Connect(t.Context(), vm.QMP)
	if err != nil {
		t.Fatal(err)
	}
	defer mon.Close()
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
	p := startPeer(t, transport.Offer{Features: transport.AllFeatures}, nil)
	conn, err := tcp.Dial(t.Context(), p.l.Addr().String(), tcp.Options{Hello: transport.Hello{
		Kind: transport.Control, Role: transport.Source, Epoch: firstEpoch, Token: tokenBytes(token), Features: transport.AllFeatures,
	}})
	if err != nil {
		t.Fatal(err)
	}
	o := &outgoing{transfer: newTransfer(h.Host, &record{Token: token, VM: "web1", Role: RoleSource, Phase: PhaseFrozen, WasRun: true}), vm: mon, mig: mig}
	defer o.cancel(nil)
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
	if s, err := mon.RunState(t.Context()); err != nil || !s.Running {
		t.Errorf("the guest is %+v, %v", s, err)
	}
}
