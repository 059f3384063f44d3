package qemu

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Rewrite maps paths: a value that is From, or lies below it, starts with To
// instead. Of several that fit, the longest From holds, and only that one.
type Rewrite struct {
	From string `toml:"from" json:"from"`
	To   string `toml:"to" json:"to"`
}

// Template is what a destination changes in a machine's command line.
type Template struct {
	// Rewrite maps paths in every argument that can hold one: memory files,
	// disks, kernels, sockets, logs, the pid file.
	Rewrite []Rewrite `toml:"rewrite" json:"rewrite,omitempty"`
	// Binary replaces the QEMU program.
	Binary string `toml:"binary" json:"binary,omitempty"`
	// Set replaces arguments. Keys: "cpu" (the only -cpu, or a new one),
	// "netdev.net0" (the -netdev whose id is net0), "netdev.net0.ifname" (one
	// property of it).
	Set map[string]string `toml:"set" json:"set,omitempty"`
	// AddArgs are words put at the end.
	AddArgs []string `toml:"add_args" json:"add_args,omitempty"`
	// RemoveArgs are options to leave out: "vnc", or "device.usb0" by id. What is
	// not there is no error, so that one template fits many machines.
	RemoveArgs []string `toml:"remove_args" json:"remove_args,omitempty"`
	// Env are "NAME=value" words added to the daemon's own environment.
	Env []string `toml:"env" json:"env,omitempty"`
}

// WithMemory returns the template with another file for a memory backend.
func (t Template) WithMemory(id, path string) Template {
	set := maps.Clone(t.Set)
	if set == nil {
		set = make(map[string]string, 1)
	}
	set["object."+id+".mem-path"] = path
	t.Set = set
	return t
}

// ids of the daemon's own monitor, by which the next relocation finds it.
const (
	ownChardev = "pagewarp-qmp"
	ownMonitor = "pagewarp-mon"
)

// opaque are options whose arguments hold no path of the host.
var opaque = wordSet("append name uuid cpu smp m rtc icount k d boot runas sandbox numa global accel")

// opaqueKeys are properties that hold text for the guest, or names.
var opaqueKeys = wordSet("string value id serial node-name qom-type driver mac")

// DestinationArgv makes the destination's command line from the source's. It is
// the same machine, except that
//   - it waits for an incoming migration, paused, in the foreground (the daemon is
//     its parent);
//   - its machine type is the versioned one, since an alias such as "pc" means
//     another machine in another QEMU;
//   - nothing fills or locks guest memory before it has arrived;
//   - it has one more QMP socket, at qmpPath, for the daemon; that of an earlier
//     relocation is gone;
//   - the template's changes are applied, in the order Rewrite, Set, RemoveArgs,
//     AddArgs.
//
// Errors: ErrArgv, ErrTemplate, ErrInheritedFD.
func DestinationArgv(d Description, t Template, qmpPath string) ([]string, error) {
	p, err := ParseArgv(d.Argv)
	if err != nil {
		return nil, err
	}
	p.Program = d.Binary
	if t.Binary != "" {
		p.Program = t.Binary
	}
	p.remove(func(a Arg) bool {
		switch a.Name {
		case "incoming", "S", "daemonize", "loadvm", "mem-prealloc", "preconfig":
			return true
		case "chardev":
			return a.id() == ownChardev
		case "mon":
			return a.id() == ownMonitor
		}
		return false
	})
	for i := range p.Args {
		if err := p.Args[i].prepare(t.Rewrite); err != nil {
			return nil, err
		}
	}
	p.remove(func(a Arg) bool { return (a.Name == "overcommit" || a.Name == "realtime") && a.Value == "" })
	if err := p.setMachine(d.Machine); err != nil {
		return nil, err
	}
	if err := p.apply(t); err != nil {
		return nil, err
	}
	if err := p.checkInherited(); err != nil {
		return nil, err
	}
	p.add("chardev", OwnChardev(qmpPath))
	p.add("mon", "chardev="+ownChardev+",id="+ownMonitor+",mode=control")
	p.add("S")
	p.add("incoming", "defer")
	return append(p.Words(), t.AddArgs...), nil
}

// prepare removes what would populate memory and rewrites paths.
func (a *Arg) prepare(rules []Rewrite) error {
	if !a.HasValue || opaque[a.Name] {
		return nil
	}
	return a.edit(func(o *Options) {
		switch a.Name {
		case "object":
			if strings.HasPrefix(o.Kind("qom-type"), "memory-backend-") {
				for _, key := range []string{"prealloc", "prealloc-threads", "prealloc-context"} {
					o.Delete(key)
				}
			}
		case "overcommit":
			o.Delete("mem-lock")
			o.dropFirst("mem-lock")
		case "realtime":
			o.Delete("mlock")
			o.dropFirst("mlock")
		}
		o.mapValues(func(key, value string) string {
			if opaqueKeys[key] {
				return value
			}
			return RewritePath(rules, value)
		})
	})
}

// dropFirst removes a bare first word.
func (o *Options) dropFirst(word string) {
	if len(o.elems) > 0 && !o.elems[0].keyed && o.elems[0].value == word {
		o.elems = o.elems[1:]
	}
}

// scheme is what may stand before a path: unix:, file:, pipe:, nbd+unix://.
var scheme = regexp.MustCompile(`^[a-z][a-z0-9+]*:(//)?`)

// RewritePath applies the rules to one value, behind a scheme such as "unix:".
func RewritePath(rules []Rewrite, value string) string {
	prefix := scheme.FindString(value)
	for _, pre := range []string{"", prefix} {
		path := value[len(pre):]
		best := -1
		for i, r := range rules {
			if r.From != "" && under(path, r.From) && (best < 0 || len(r.From) > len(rules[best].From)) {
				best = i
			}
		}
		if best >= 0 {
			return pre + rules[best].To + path[len(rules[best].From):]
		}
	}
	return value
}

// under reports whether path is dir or lies below it.
func under(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, dir)
	return ok && (rest == "" || strings.HasSuffix(dir, "/") || rest[0] == '/')
}

// setMachine pins the versioned machine type.
func (p *Argv) setMachine(machine string) error {
	if machine == "" {
		return nil
	}
	at := -1
	for i, a := range p.Args {
		if a.Name != "machine" && a.Name != "M" {
			continue
		}
		o, err := a.options()
		if err != nil {
			return err
		}
		if o.Kind("type") != "" || at < 0 {
			at = i
		}
	}
	if at < 0 {
		p.add("machine", machine)
		return nil
	}
	return p.Args[at].edit(func(o *Options) {
		if o.Kind("type") != machine {
			o.setKind("type", machine)
		}
	})
}

// apply performs Set and RemoveArgs.
func (p *Argv) apply(t Template) error {
	keys := make([]string, 0, len(t.Set))
	for k := range t.Set {
		keys = append(keys, k)
	}
	slices.Sort(keys) // "netdev.n" before "netdev.n.ifname"
	for _, key := range keys {
		if err := p.set(key, t.Set[key]); err != nil {
			return err
		}
	}
	for _, key := range t.RemoveArgs {
		name, id, byID := strings.Cut(strings.TrimLeft(key, "-"), ".")
		p.remove(func(a Arg) bool { return a.Name == name && (!byID || a.id() == id) })
	}
	return nil
}

func (p *Argv) set(key, value string) error {
	name, rest, byID := strings.Cut(strings.TrimLeft(key, "-"), ".")
	if !byID {
		at := -1
		for i, a := range p.Args {
			if a.Name != name {
				continue
			}
			if at >= 0 {
				return detailed(ErrTemplate, "set %q: the command line has several -%s; name one as %q", key, name, name+".ID")
			}
			at = i
		}
		if at < 0 {
			p.add(name, value)
			return nil
		}
		if !p.Args[at].HasValue {
			return detailed(ErrTemplate, "set %q: -%s takes no argument", key, name)
		}
		p.Args[at].Value = value
		return nil
	}
	for i := range p.Args {
		a := &p.Args[i]
		id := a.id()
		if a.Name != name || id == "" {
			continue
		}
		if rest == id {
			a.Value = value
			return nil
		}
		if property, ok := strings.CutPrefix(rest, id+"."); ok {
			return a.edit(func(o *Options) { o.Set(property, value) })
		}
	}
	return detailed(ErrTemplate, "set %q: the command line has no -%s with that id", key, name)
}

// fdKeys are properties that name descriptors of QEMU's parent.
var fdKeys = wordSet("fd fds vhostfd vhostfds sock_fd")

// fdRemedies says what to set instead, by option.
var fdRemedies = map[string]string{
	"netdev":  `"tap,id=ID,ifname=NAME,script=no,downscript=no"`,
	"chardev": `"socket,id=ID,path=PATH,server=on,wait=off"`,
}

// checkInherited refuses what only the source's parent process could provide.
func (p *Argv) checkInherited() error {
	for _, a := range p.Args {
		if !a.HasValue || opaque[a.Name] {
			continue
		}
		o, err := a.options()
		if err != nil {
			return err
		}
		bad := ""
		isFD := o.Kind("type") == "fd"
		for _, k := range []string{"addr.type", "local.type", "remote.type"} {
			if v, _ := o.Get(k); v == "fd" {
				isFD = true
			}
		}
		o.each(func(key, v string) {
			numeric := v != "" && strings.Trim(v, "0123456789:") == ""
			if fdKeys[key] && (numeric || a.Name == "netdev" || a.Name == "chardev") || strings.HasPrefix(v, "/dev/fdset/") || strings.HasPrefix(v, "/dev/fd/") {
				bad = key + "=" + v
			}
		})
		if bad == "" && !isFD && a.Name != "add-fd" {
			continue
		}
		if bad == "" {
			bad = a.Value
		}
		key, remedy := a.Name, fdRemedies[a.Name]
		if id := a.id(); id != "" {
			key += "." + id
			remedy = strings.ReplaceAll(remedy, "ID", id)
		}
		if remedy == "" {
			remedy = "an argument that names a path"
		}
		return detailed(ErrInheritedFD, "-%s %s: %s was handed to QEMU by whoever started it, and means nothing on another host; in the destination's template set %q to %s, or remove it with remove_args", a.Name, a.Value, bad, key, remedy)
	}
	return nil
}

// OwnChardev is the argument by which a QEMU that was started here has its monitor for the
// daemon at that path.
func OwnChardev(qmpPath string) string {
	return "socket,id=" + ownChardev + ",path=" + EscapeValue(qmpPath) + ",server=on,wait=off"
}
