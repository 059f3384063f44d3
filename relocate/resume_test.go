package relocate

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
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

const quietPages = 64

// quietEngine is an engine on such memory.
func quietEngine(t *testing.T, m faultd.Memory, open faultd.Opener) *faultd.Engine {
	t.Helper()
	mem, err := sysmem.MapAnonymous(int64(pagecache.Size(quietPages)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sysmem.Unmap(mem) })
	res, err := pagecache.Create(mem, quietPages, 1)
	if err != nil {
		t.Fatal(err)
	}
	m.Faults, m.Install = quiet{}, quiet{}
	e, err := faultd.New(faultd.Config{
		Regions: []faultd.Region{{Region: quietRegion, Residency: res}}, Memory: m, Open: open,
	})
	if err == nil {
		err = e.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Detach)
	return e
}

var quietRegion = transport.Region{Name: "ram", PageSize: 4096, Pages: quietPages}

// failedEngine is an engine that has failed for that reason.
func failedEngine(t *testing.T, reason error) *faultd.Engine {
	t.Helper()
	e := quietEngine(t, faultd.Memory{}, func(context.Context, transport.Kind, int) (transport.Fetcher, error) { return nil, reason })
	<-e.Failed()
	return e
}

// stuck is memory that cannot be emptied.
type stuck struct {
	pages []byte
	why   error
}

func (s stuck) Place(r transport.Range, dst [][]byte) {
	for i := range dst {
		at := (r.First + uint64(i)) * 4096
		dst[i] = s.pages[at : at+4096]
	}
}
func (s stuck) Discard(transport.Range) error { return s.why }
func (s stuck) NextData(uint32, uint64) (first, count uint64, ok bool, err error) {
	return 0, 0, false, nil
}

// TestCandidatesThatStay: memory in which something was placed that is no candidate, and that
// cannot be emptied, would be shown to the guest where its source has zeroes. The session
// fails with it, before the guest runs.
func TestCandidatesThatStay(t *testing.T) {
	h := startHost(t, vmtest.Dir(t), "b", nil)
	token, err := newToken()
	if err != nil {
		t.Fatal(err)
	}
	in := newIncoming(h.Host, &record{Token: token, VM: "web1", Role: RoleDestination, Regions: []transport.Region{quietRegion}})
	defer in.cancel(nil)
	why := errors.New("the file is sealed")
	memory := faultd.Memory{Place: stuck{make([]byte, quietPages*4096), why}}
	e := quietEngine(t, memory, func(ctx context.Context, _ transport.Kind, _ int) (transport.Fetcher, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	})
	in.memory = &guestMemory{in: in, engine: e}
	if err := in.startWarm(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.dir, "kept") // a page of data, one of zeroes that is no hole, one of data
	if err := os.WriteFile(path, slices.Concat(bytes.Repeat([]byte{1, 2}, 2048), make([]byte, 4096), bytes.Repeat([]byte{3, 4}, 2048)), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openCandidate(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.file.Close()
	if err := in.place(t.Context(), 0, f); !errors.Is(err, why) {
		t.Errorf("placed: %v", err)
	}
	if n := in.warm.Candidates(); n == 2 {
		t.Fatal("all of it are candidates: nothing is left to be shown")
	}
	if err := e.Err(); !errors.Is(err, why) {
		t.Errorf("the engine goes on, with memory behind pages that are no candidates: %v", err)
	}
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
