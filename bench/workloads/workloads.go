package workloads

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/pagewarp/pagewarp/internal/guestapi"
)

// Web is the kind of the guest's default: a web server over a working set that
// is verified and rewritten all the time.
const Web = "web"

// Kind is a kind of load.
type Kind struct {
	// Name is what Parse takes. All but Web are guestapi's.
	Name string
	// Text says what it does.
	Text string
	// Params are the parameters it has, in the order of Load.String.
	Params []string
	// Client is the package whose client puts the load on; empty for loads that
	// the guest makes by itself.
	Client string
}

// Parameters of the kinds.
const (
	paramWS       = "ws"       // working set in MiB
	paramHalf     = "half"     // share that no codec can shrink
	paramRate     = "rate"     // pages rewritten a second, 0 for as many as it can
	paramExponent = "exponent" // of Zipf's law
	paramSessions = "sessions" // simultaneous ones
	paramScale    = "scale"    // of think times and data
	paramFront    = "front"    // nginx
)

var memory = []string{paramWS, paramHalf}

var kinds = []Kind{
	{Web, "web server over memory that is rewritten all the time", append(memory[:2:2], paramRate), "bench/load"},
	{guestapi.LoadRandom, "touch random pages, read and write, as fast as it goes", memory, ""},
	{guestapi.LoadSweep, "touch all pages in order, again and again", memory, ""},
	{guestapi.LoadZipf, "touch pages by Zipf's law: a hot set, scattered over the memory", append(memory[:2:2], paramExponent), ""},
	{guestapi.LoadChurn, "verify and rewrite random pages at a set rate", append(memory[:2:2], paramRate), ""},
	{guestapi.LoadIdle, "nothing but a tick every 10 ms", memory, ""},
	{guestapi.LoadRedis, "Redis, in memory only, which may keep up to ws MiB; its client sets values of 1 KiB for half of that, 20,000 at most", []string{paramWS}, "bench/workloads/resp"},
	{guestapi.LoadBanking, "SPECweb-style Banking, all over TLS", web, "bench/specweb"},
	{guestapi.LoadEcommerce, "SPECweb-style E-commerce, TLS from the checkout on", web, "bench/specweb"},
	{guestapi.LoadSupport, "SPECweb-style Support, with large downloads", web, "bench/specweb"},
}

var web = []string{paramWS, paramHalf, paramSessions, paramScale, paramFront}

// Kinds returns all kinds of load.
func Kinds() []Kind { return slices.Clone(kinds) }

// Load is one load with its parameters; those that its kind does not have are
// at their defaults. Loads can be compared with ==.
type Load struct {
	Kind          string  `json:"kind"`
	WorkingSetMiB int     `json:"working_set_mib"`
	Half          float64 `json:"incompressible"` // share of the data, 0 to 1
	Rate          int     `json:"rate,omitempty"` // pages/s
	Exponent      float64 `json:"exponent,omitempty"`
	Sessions      int     `json:"sessions,omitempty"`
	Scale         float64 `json:"scale,omitempty"`
	Front         string  `json:"front,omitempty"`
}

// Default returns a load of a kind with the guest's default parameters.
func Default(kind string) (Load, error) {
	k, err := find(kind)
	if err != nil {
		return Load{}, err
	}
	g := guestapi.DefaultConfig()
	l := Load{Kind: kind, WorkingSetMiB: g.WorkingSetMiB}
	for _, p := range k.Params {
		switch p {
		case paramHalf:
			l.Half = g.Incompressible
		case paramExponent:
			l.Exponent = g.ZipfExponent
		case paramSessions:
			l.Sessions, l.Scale = g.Sessions, g.Scale
		}
	}
	if strings.HasPrefix(kind, guestapi.SPECwebPrefix) {
		l.WorkingSetMiB = 64 // beside the file set, whose size follows from the sessions
	}
	return l, nil
}

func find(kind string) (Kind, error) {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		if k.Name == kind {
			return k, nil
		}
		names[i] = k.Name
	}
	return Kind{}, fmt.Errorf("load %q: choose one of %s", kind, strings.Join(names, ", "))
}

// Parse reads KIND or KIND:NAME=VALUE,NAME=VALUE.
func Parse(text string) (Load, error) {
	kind, params, given := strings.Cut(text, ":")
	l, err := Default(kind)
	if err != nil || !given {
		return l, err
	}
	k, _ := find(kind) // Default has found it
	for _, p := range strings.Split(params, ",") {
		name, value, _ := strings.Cut(p, "=")
		if !slices.Contains(k.Params, name) {
			return Load{}, fmt.Errorf("load %q: %s has no parameter %q; it has %s", text, kind, name, strings.Join(k.Params, ", "))
		}
		if err := l.set(name, value); err != nil {
			return Load{}, fmt.Errorf("load %q: parameter %w", text, err)
		}
	}
	return l, nil
}

func (l *Load) set(name, value string) error {
	switch name {
	case paramWS:
		return whole(&l.WorkingSetMiB, name, value, 1, 1<<20)
	case paramRate:
		return whole(&l.Rate, name, value, 0, 10_000_000)
	case paramSessions:
		return whole(&l.Sessions, name, value, 1, 100_000)
	case paramHalf:
		return real(&l.Half, name, value, 0, 1)
	case paramExponent:
		return real(&l.Exponent, name, value, 1+1e-9, 10)
	case paramScale:
		return real(&l.Scale, name, value, 1e-6, 1)
	case paramFront:
		if value != guestapi.FrontNginx {
			return fmt.Errorf("%s=%s: want %s", name, value, guestapi.FrontNginx)
		}
		l.Front = value
	}
	return nil
}

func whole(to *int, name, value string, low, high int) error {
	n, err := strconv.Atoi(value)
	if err != nil || n < low || n > high {
		return fmt.Errorf("%s=%s: want a number from %d to %d", name, value, low, high)
	}
	*to = n
	return nil
}

func real(to *float64, name, value string, low, high float64) error {
	x, err := strconv.ParseFloat(value, 64)
	if err != nil || math.IsNaN(x) || x < low || x > high {
		return fmt.Errorf("%s=%s: want a number from %.3g to %g", name, value, low, high)
	}
	*to = x
	return nil
}

// String renders l so that Parse reads it back.
func (l Load) String() string {
	k, err := find(l.Kind)
	if err != nil {
		return l.Kind
	}
	var parts []string
	for _, p := range k.Params {
		value := ""
		switch p {
		case paramWS:
			value = strconv.Itoa(l.WorkingSetMiB)
		case paramRate:
			value = strconv.Itoa(l.Rate)
		case paramSessions:
			value = strconv.Itoa(l.Sessions)
		case paramHalf:
			value = strconv.FormatFloat(l.Half, 'g', -1, 64)
		case paramExponent:
			value = strconv.FormatFloat(l.Exponent, 'g', -1, 64)
		case paramScale:
			value = strconv.FormatFloat(l.Scale, 'g', -1, 64)
		case paramFront:
			value = l.Front
		}
		if value != "" {
			parts = append(parts, p+"="+value)
		}
	}
	return l.Kind + ":" + strings.Join(parts, ",")
}

// Set implements pflag.Value.
func (l *Load) Set(text string) (err error) {
	got, err := Parse(text)
	if err == nil {
		*l = got
	}
	return err
}

// Type implements pflag.Value.
func (l *Load) Type() string { return "load" }

// Apply puts the load into a guest's configuration.
func (l Load) Apply(g guestapi.Config) guestapi.Config {
	g.WorkingSetMiB, g.Incompressible, g.ChurnRate, g.Touch = l.WorkingSetMiB, l.Half, l.Rate, false
	g.Front, g.Load = l.Front, l.Kind
	if l.Kind == Web {
		g.Load = ""
	}
	g.ZipfExponent = cmp.Or(l.Exponent, g.ZipfExponent)
	g.Sessions = cmp.Or(l.Sessions, g.Sessions)
	g.Scale = cmp.Or(l.Scale, g.Scale)
	return g
}

// Image returns the name of the initramfs that the load needs, in the folder of
// the test guest.
func (l Load) Image() string {
	if l.Kind == guestapi.LoadRedis || l.Front != "" {
		return "initramfs-programs.cpio.gz"
	}
	return "initramfs.cpio.gz"
}
