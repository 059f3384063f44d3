package qemu

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// relay carries the device state; wait for its end on the channel.
func relay(from, to *StateStream) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(to, from)
		done <- err
	}()
	return done
}

// move performs a whole migration and returns its downtime.
func move(t *testing.T, s *source, d *destination, running bool) time.Duration {
	t.Helper()
	ctx := within(t, 30*time.Second)
	o, stream := s.begin(t)
	copied := relay(stream, d.stream)
	stopped, err := o.WaitPreSwitchover(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if running == stopped.IsZero() {
		t.Errorf("stopped at %v, running is %v", stopped, running)
	}
	copyMemory(t, s.mem, s.destMem())
	frozen := counter(t, s.mem)
	step := time.Now()
	if err := o.ContinueSwitchover(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.in.WaitLoaded(ctx); err != nil {
		t.Fatal(err)
	}
	if err := o.WaitSourceCompleted(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-copied; err != nil {
		t.Fatal(err)
	}
	if st, err := d.RunState(ctx); err != nil || st.Running {
		t.Fatalf("loaded destination is %v, %v", st, err)
	}
	if a, b := counter(t, s.mem), counter(t, s.destMem()); a != frozen || b != frozen {
		t.Errorf("counters are %d and %d, frozen at %d", a, b, frozen)
	}
	resumed, err := d.in.Resume(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("switch-over without the memory copy: %v", time.Since(step))
	counts(t, s.destMem())
	if got := counter(t, s.mem); got != frozen {
		t.Errorf("the source went on from %d to %d", frozen, got)
	}
	if err := d.AnnounceSelf(ctx, DefaultAnnounce); err != nil {
		t.Error(err)
	}
	return resumed.Sub(stopped)
}

func TestMigrate(t *testing.T) {
	s := start(t, memArgs)
	d := s.spawn(t)
	t.Logf("downtime by QEMU's events, with a copy of %d MiB: %v", ramSize>>20, move(t, s, d, true))
	if err := s.Quit(within(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
	select {
	case <-s.proc.Done():
	case <-within(t, 5*time.Second).Done():
		t.Error("the source is still there after quit")
	}

	// The next hop starts from the destination's own command line.
	desc, err := d.Inspect(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckRelocatable(desc); err != nil {
		t.Error(err)
	}
	argv, err := DestinationArgv(desc, Template{}, "/run/next")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(strings.Join(argv, " "), ownChardev); n != 2 {
		t.Errorf("the next hop's command line has %d mentions of our monitor: %q", n, argv)
	}
	if slices.Contains(argv, "-daemonize") || strings.Contains(strings.Join(argv, " "), "prealloc") {
		t.Errorf("the command line is %q", argv)
	}
	left, err := filepath.Glob(filepath.Join(s.dir, "state-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestMigratePaused(t *testing.T) {
	s := start(t, memArgs)
	counts(t, s.mem)
	if err := s.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := s.spawn(t)
	move(t, s, d, false)
}

// TestMigrateHanded is without a path that both QEMUs and the daemon reach.
func TestMigrateHanded(t *testing.T) {
	s := start(t, memArgs)
	s.handed = true
	move(t, s, s.spawn(t), true)
}

// TestRollback goes back from every state of one machine, then moves it.
func TestRollback(t *testing.T) {
	for _, handed := range []bool{false, true} {
		t.Run(fmt.Sprintf("handed %v", handed), func(t *testing.T) { rollBack(t, handed) })
	}
}

func rollBack(t *testing.T, handed bool) {
	t.Helper()
	s := start(t, func(mem string) []string {
		a := memArgs(mem)
		a[1] = "q35,memory-backend=mem"
		return append(a, bigState...)
	})
	s.handed = handed
	before := settings(t, s.VM)
	status := func(want string) {
		t.Helper()
		m, err := s.Migration(within(t, 5*time.Second))
		if err != nil || m.Status != want {
			t.Fatalf("migration is %q, %v; want %q", m.Status, err, want)
		}
	}
	back := func(o *Outgoing) {
		t.Helper()
		begun := time.Now()
		if err := o.CancelAndResume(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		t.Logf("rolled back in %v", time.Since(begun))
		counts(t, s.mem)
		if now := settings(t, s.VM); now != before {
			t.Errorf("settings are\n%s\nwere\n%s", now, before)
		}
		o.Close()
	}
	freeze := func() (*Outgoing, *StateStream, <-chan error) {
		t.Helper()
		o, stream := s.begin(t)
		end := make(chan error, 1)
		stop := make(chan struct{})
		go func() { // reads until told to stall
			buf := make([]byte, 64<<10)
			for {
				select {
				case <-stop:
					end <- nil
					return
				default:
				}
				if _, err := stream.Read(buf); err != nil {
					end <- err
					return
				}
			}
		}()
		if _, err := o.WaitPreSwitchover(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		status("pre-switchover")
		close(stop)
		return o, stream, end
	}

	t.Log("prepared")
	o, err := s.PrepareSource(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	back(o)

	t.Log("active")
	o, _ = s.begin(t)
	if err := o.wait(within(t, 10*time.Second), "active"); err != nil {
		t.Fatal(err)
	}
	if _, err := o.WaitPreSwitchover(within(t, 50*time.Millisecond)); err == nil {
		t.Fatal("reached pre-switchover though nobody reads")
	} else {
		wantError(t, err, ErrTimeout, `"active"`)
	}
	status("active")
	back(o)

	t.Log("pre-switchover")
	o, _, _ = freeze()
	back(o)

	t.Log("pre-switchover, by a daemon that was restarted")
	o, stream, _ := freeze()
	o.Close()
	o = s.AdoptOutgoing(o.Saved())
	o.AbortWith(stream)
	back(o)

	t.Log("device, the stream stalled")
	o, _, _ = freeze()
	if err := o.ContinueSwitchover(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = o.WaitSourceCompleted(within(t, 100*time.Millisecond))
	wantError(t, err, ErrTimeout)
	back(o)

	t.Log("failed: the stream broke")
	o, stream = s.begin(t)
	stream.Close()
	_, err = o.WaitPreSwitchover(within(t, 10*time.Second))
	wantError(t, err, ErrMigrationFailed)
	back(o)

	t.Log("completed")
	o, stream = s.begin(t)
	drained := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, stream); drained <- err }()
	if _, err := o.WaitPreSwitchover(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := o.ContinueSwitchover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := o.WaitSourceCompleted(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
	back(o)

	t.Log("and then it moves")
	move(t, s, s.spawn(t), true)
}

// TestKilled: whoever waits for a QEMU that is killed hears of it at once.
func TestKilled(t *testing.T) {
	quick := func(t *testing.T, what string, want error, wait func() error) {
		t.Helper()
		begun := time.Now()
		err := wait()
		wantError(t, err, want, "pid ")
		if d := time.Since(begun); d > 2*time.Second {
			t.Errorf("%s: took %v", what, d)
		}
		t.Logf("%s: %v", what, err)
	}
	t.Run("source, active", func(t *testing.T) {
		s := start(t, memArgs)
		o, _ := s.begin(t)
		kill(t, s.proc)
		quick(t, "pre-switchover", ErrDisconnected, func() error { _, err := o.WaitPreSwitchover(t.Context()); return err })
		quick(t, "rollback", ErrDisconnected, func() error { return o.CancelAndResume(t.Context()) })
		quick(t, "inspect", ErrProcessGone, func() error { _, err := s.Inspect(t.Context()); return err })
		_, err := ConnectProcess(t.Context(), s.QMPPath, s.proc)
		wantError(t, err, ErrMonitorDead)
	})
	t.Run("source, frozen", func(t *testing.T) {
		s := start(t, memArgs)
		d := s.spawn(t)
		o, stream := s.begin(t)
		copied := relay(stream, d.stream)
		if _, err := o.WaitPreSwitchover(t.Context()); err != nil {
			t.Fatal(err)
		}
		kill(t, s.proc)
		quick(t, "continue", ErrDisconnected, func() error { return o.ContinueSwitchover(t.Context()) })
		quick(t, "completed", ErrDisconnected, func() error { return o.WaitSourceCompleted(t.Context()) })
		if err := <-copied; err != nil {
			t.Logf("relay: %v", err)
		}
		// A relay that ends closes the destination's stream: half a state never loads.
		d.stream.Close()
		quick(t, "load", ErrMigrationFailed, func() error { return d.in.WaitLoaded(t.Context()) })
	})
	t.Run("destination", func(t *testing.T) {
		s := start(t, memArgs)
		d := s.spawn(t)
		kill(t, d.proc)
		quick(t, "load", ErrMigrationFailed, func() error { return d.in.WaitLoaded(t.Context()) })
		quick(t, "resume", ErrDisconnected, func() error { _, err := d.in.Resume(t.Context()); return err })
		counts(t, s.mem)
		if _, err := Adopt(d.proc.PID, d.proc.Start, ""); err == nil {
			t.Error("adopted a dead process")
		} else {
			wantError(t, err, ErrProcessGone)
		}
	})
}

func TestLoadGarbage(t *testing.T) {
	s := start(t, memArgs)
	d := s.spawn(t)
	if _, err := d.stream.Write([]byte("this is no device state")); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	err := d.in.WaitLoaded(t.Context())
	wantError(t, err, ErrMigrationFailed, "Not a migration stream")
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	t.Log(err)
	_, err = d.in.Resume(t.Context())
	if err == nil {
		t.Error("resumed without a state")
	}
}

// TestGuestShutDown: a guest that has shut down is not the migration's to resume.
func TestGuestShutDown(t *testing.T) {
	s := start(t, memArgs, "-no-reboot", "-no-shutdown")
	before := settings(t, s.VM)
	o, err := s.PrepareSource(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	in := s.AdoptInbound()
	defer in.Close()
	sub := s.Subscribe(EventShutdown)
	defer sub.Close()
	if err := s.Execute(t.Context(), "system_reset", nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := sub.Next(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = in.Resume(t.Context())
	wantError(t, err, ErrResumeRefused)
	t.Log(err)
	wantError(t, o.CancelAndResume(t.Context()), ErrRunState, "shutdown")
	if err := o.Restore(t.Context()); err != nil {
		t.Error(err)
	}
	if now := settings(t, s.VM); now != before {
		t.Errorf("settings are %s", now)
	}
}

func TestAdoptReusedPID(t *testing.T) {
	at, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	_, err = Adopt(os.Getpid(), at+1, "")
	wantError(t, err, ErrProcessGone, "reused")
	p, err := Adopt(os.Getpid(), at, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Release(); err != nil {
		t.Error(err)
	}
}
