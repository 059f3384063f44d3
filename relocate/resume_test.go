package relocate

import (
	"context"
	"errors"
	"testing"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport"
)

// quiet is memory in which nobody faults.
type quiet struct{ stop chan struct{} }

func (q quiet) NewReader() (faultd.FaultReader, error)  { return quiet{make(chan struct{})}, nil }
func (q quiet) Release() error                          { return nil }
func (q quiet) Read([]faultd.Event) (int, error)        { <-q.stop; return 0, faultd.ErrStopped }
func (q quiet) Stop()                                   { close(q.stop) }
func (q quiet) Close() error                            { return nil }
func (q quiet) Install(transport.Range, [][]byte) error { return nil }
func (q quiet) Zero(transport.Range) error              { return nil }
func (q quiet) Wake(transport.Range) error              { return nil }

// failedEngine is an engine that has failed for that reason.
func failedEngine(t *testing.T, reason error) *faultd.Engine {
	t.Helper()
	const pages = 64
	mem, err := sysmem.MapAnonymous(int64(pagecache.Size(pages)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sysmem.Unmap(mem) })
	res, err := pagecache.Create(mem, pages, 1)
	if err != nil {
		t.Fatal(err)
	}
	e, err := faultd.New(faultd.Config{
		Regions: []faultd.Region{{Region: transport.Region{Name: "ram", PageSize: 4096, Pages: pages}, Residency: res}},
		Memory:  faultd.Memory{Faults: quiet{}, Install: quiet{}},
		Open:    func(context.Context, transport.Kind, int) (transport.Fetcher, error) { return nil, reason },
	})
	if err == nil {
		err = e.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Detach() })
	<-e.Failed()
	return e
}

// TestEngineFailsBeforeTheGuestRuns: the machine is whole at its source as long as no
// instruction has run here, so a fault engine that has failed by then must not cost it.
func TestEngineFailsBeforeTheGuestRuns(t *testing.T) {
	h := startHost(t, vmtest.Dir(t), "b", nil)
	vm := vmtest.Start(t, h.dir)
	mon, err := qemu.Connect(t.Context(), vm.QMP)
	if err != nil {
		t.Fatal(err)
	}
	defer mon.Close()
	desc, err := mon.Inspect(t.Context())
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
	in := newIncoming(h.Host, &record{Token: token, VM: "web1", Role: RoleDestination, Phase: PhaseLoaded, PID: desc.PID, StartTime: desc.Start})
	defer in.cancel(nil)
	if in.proc, err = qemu.Adopt(desc.PID, desc.Start, ""); err != nil {
		t.Fatal(err)
	}
	defer in.proc.Release()
	in.vm, in.mig = mon, mon.AdoptInbound()
	defer in.mig.Close()
	broken := errors.New("the image cannot be read")
	in.memory = &guestMemory{in: in, engine: failedEngine(t, broken)}
	if err := in.start(true); !errors.Is(err, errNotStarted) || !errors.Is(err, broken) {
		t.Errorf("GO was answered by %v, want %v because of %q", err, errNotStarted, broken)
	}
	if s, err := mon.RunState(t.Context()); err != nil || s.Running {
		t.Errorf("the guest is %+v (%v), and should not run", s, err)
	}
	if recs, err := h.journal.load(in.rec.Started); err != nil || len(recs) != 0 {
		t.Errorf("the journal says %+v, %v", recs, err)
	}
}
