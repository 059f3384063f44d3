package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/pkg/profile"
	"github.com/spf13/pflag"
)

// profiles are the flags of github.com/pkg/profile, which keeps one profile at
// a time.
var profiles = []struct {
	flag, file, what string
	mode             func(*profile.Profile)
}{
	{"cpuprofile", "cpu.pprof", "CPU", profile.CPUProfile},
	{"memprofile", "mem.pprof", "memory", profile.MemProfile},
	{"blockprofile", "block.pprof", "blocking", profile.BlockProfile},
	{"mutexprofile", "mutex.pprof", "mutex contention", profile.MutexProfile},
	{"trace", "trace.out", "execution trace", profile.TraceProfile},
}

func addProfileFlags(f *pflag.FlagSet) {
	for _, p := range profiles {
		f.String(p.flag, "", fmt.Sprintf("write a %s profile to `DIR`/%s when the daemon stops", p.what, p.file))
	}
}

// startProfile starts what the flags ask for; stop writes the file.
func startProfile(f *pflag.FlagSet, log *slog.Logger) (stop func(), err error) {
	stop = func() {}
	chosen := ""
	for _, p := range profiles {
		dir, err := f.GetString(p.flag)
		if err != nil || dir == "" {
			continue
		}
		if chosen != "" {
			stop()
			return nil, usagef("--%s and --%s exclude each other: one profile at a time", chosen, p.flag)
		}
		chosen = p.flag
		// The package ends the process where it cannot write; say why before.
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make directory of --%s: %w", p.flag, err)
		}
		running := profile.Start(p.mode, profile.ProfilePath(dir), profile.NoShutdownHook, profile.Quiet)
		log.Info("profiling", "kind", p.what, "file", dir+"/"+p.file)
		stop = running.Stop
	}
	return stop, nil
}
