package config

import (
	_ "embed"
	"fmt"
	"path/filepath"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/units"
	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/relocate"
	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// Port is where daemons expect each other unless the address says otherwise.
const Port = "7070"

// DefaultStateDir is the state directory of an installed daemon.
const DefaultStateDir = "/run/pagewarp"

// SocketName is the API socket's name inside the state directory.
const SocketName = "api.sock"

// DefaultSocket is where the daemon listens and the operator's command looks
// when neither is told otherwise.
const DefaultSocket = DefaultStateDir + "/" + SocketName

// Example is a complete configuration, every key with its default and its
// explanation.
//
//go:embed example.toml
var Example string

// Config is the whole file. Its zero value is not usable; begin with Default.
type Config struct {
	StateDir        string   `toml:"state_dir"`
	Listen          []string `toml:"listen"`
	Insecure        bool     `toml:"insecure"`
	ShutdownTimeout Duration `toml:"shutdown_timeout"`

	API      API      `toml:"api"`
	TLS      TLS      `toml:"tls"`
	Log      Log      `toml:"log"`
	Metrics  Metrics  `toml:"metrics"`
	Relocate Relocate `toml:"relocate"`
	Engine   Engine   `toml:"engine"`
	RDMA     RDMA     `toml:"rdma"`
	Cache    Cache    `toml:"cache"`
	// Templates change the command line of machines that arrive here, by name;
	// "*" is for all that have none of their own.
	Templates map[string]qemu.Template `toml:"templates,omitempty"`
}

// API is the operator's interface.
type API struct {
	Socket string `toml:"socket"` // "": api.sock in the state directory
}

// TLS names the files of mutual TLS. All three or none.
type TLS struct {
	CA    string   `toml:"ca"`
	Cert  string   `toml:"cert"`
	Key   string   `toml:"key"`
	Peers []string `toml:"peers"` // names accepted of those the CA vouches for; empty: all
}

// Enabled reports whether certificates are configured.
func (t TLS) Enabled() bool { return t.CA != "" || t.Cert != "" || t.Key != "" }

// Log is the daemon's log.
type Log struct {
	Level  string `toml:"level"`  // debug, info, warn, error
	Format string `toml:"format"` // auto, text, json
}

// Metrics is the optional TCP address of /metrics; the API socket has it always.
type Metrics struct {
	Listen string `toml:"listen"`
}

// Relocate holds what a relocation uses where the operator chose nothing.
type Relocate struct {
	Bandwidth        units.Rate `toml:"bandwidth"`
	HostBandwidth    units.Rate `toml:"host_bandwidth"`
	Codec            string     `toml:"codec"`
	DemandChannels   int        `toml:"demand_channels"`
	PrecacheChannels int        `toml:"precache_channels"`
}

// RDMA is what this host allows of pages by RDMA READ, which nobody encrypts.
type RDMA struct {
	Policy string     `toml:"policy"` // one of relocate.RDMAPolicies
	Device string     `toml:"device"` // "": what is behind the peers' address
	Budget units.Size `toml:"budget"` // registered memory of a relocation at each end; 0: no bound
}

// Engine tunes the data path; zeroes leave the choice to the engine.
type Engine struct {
	GOMAXPROCS   int      `toml:"gomaxprocs"`
	FaultReaders int      `toml:"fault_readers"`
	Spin         Duration `toml:"spin"`
	DemandPace   Duration `toml:"demand_pace"`  // 0: faults never wait
	Reserve      Duration `toml:"reserve"`      // 0: no memory is reserved
	Awake        Duration `toml:"awake"`        // 0: the CPUs may sleep as they like
	FaultSource  string   `toml:"fault_source"` // one of relocate.FaultSources
	FaultLog     string   `toml:"fault_log"`    // folder; empty: none
}

// Cache is what is kept of machines that have left, for a quick return.
type Cache struct {
	Dir   string   `toml:"dir"`
	Size  string   `toml:"size"`  // as units.ParseSize reads it; "0" keeps nothing
	Allow []string `toml:"allow"` // further directories whose files --warm may name
}

// Bytes is the size; a size that Validate refuses is 0.
func (c Cache) Bytes() int64 {
	n, err := units.ParseSize(c.Size)
	if err != nil {
		return 0
	}
	return n
}

// Duration is a time.Duration written like "20s" in TOML.
type Duration time.Duration

// UnmarshalText reads Go's notation for durations.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("duration %q: write a number and a unit, like 500us, 20s or 5m", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes Go's notation for durations.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default is the configuration of a daemon started without a file.
func Default() Config {
	return Config{
		StateDir:        DefaultStateDir,
		Listen:          []string{},
		ShutdownTimeout: Duration(20 * time.Second),
		TLS:             TLS{Peers: []string{}},
		Log:             Log{Level: "info", Format: "auto"},
		Relocate:        Relocate{Codec: "auto"},
		Engine:          Engine{FaultSource: "auto", DemandPace: Duration(faultd.DefaultDemandPace), Reserve: Duration(relocate.DefaultReserve), Awake: Duration(relocate.DefaultAwake)},
		RDMA:            RDMA{Policy: "ask"},
		Cache:           Cache{Dir: "/dev/shm/pagewarp-cache", Size: "0", Allow: []string{}},
	}
}

// Socket is the path of the API socket.
func (c Config) Socket() string {
	if c.API.Socket != "" {
		return c.API.Socket
	}
	return filepath.Join(c.StateDir, SocketName)
}

// Listeners are the addresses for peers. Where none is configured, a daemon
// that can prove who it is listens everywhere and any other on loopback.
func (c Config) Listeners() []string {
	switch {
	case len(c.Listen) > 0:
		return c.Listen
	case c.TLS.Enabled() || c.Insecure:
		return []string{":" + Port}
	}
	return []string{"127.0.0.1:" + Port}
}

// Template is the template of the machine vm: its own, else the one for all.
func (c Config) Template(vm string) qemu.Template {
	if t, ok := c.Templates[vm]; ok {
		return t
	}
	return c.Templates["*"]
}
