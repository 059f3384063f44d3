package main

import (
	"context"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/daemon"
	"github.com/pagewarp/pagewarp/relocate"
)

// newEngine is the one place where the daemon meets the relocation engine.
func newEngine(ctx context.Context, c daemon.EngineConfig) (daemon.Engine, error) {
	h, err := relocate.NewHost(ctx, relocate.HostConfig{
		StateDir:         c.StateDir,
		Listen:           c.Listen,
		ServerTLS:        c.ServerTLS,
		ClientTLS:        c.ClientTLS,
		Template:         c.Template,
		Log:              c.Log,
		DemandChannels:   c.Relocate.DemandChannels,
		PrecacheChannels: c.Relocate.PrecacheChannels,
		Bandwidth:        int64(c.Relocate.HostBandwidth),
		FaultReaders:     c.Engine.FaultReaders,
		FaultSource:      c.Engine.FaultSource,
		FaultLogDir:      c.Engine.FaultLog,
		Spin:             time.Duration(c.Engine.Spin),
		DemandPace:       time.Duration(c.Engine.DemandPace),
		Reserve:          time.Duration(c.Engine.Reserve),
		Awake:            time.Duration(c.Engine.Awake),
		RDMA:             relocate.RDMAConfig{Policy: c.RDMA.Policy, Device: c.RDMA.Device, Budget: uint64(c.RDMA.Budget)},
		Cache:            relocate.CacheConfig{Dir: c.Cache.Dir, Size: c.Cache.Bytes(), Allow: c.Cache.Allow},
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}
