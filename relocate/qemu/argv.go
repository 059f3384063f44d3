package qemu

import (
	"slices"
	"strings"
)

// Argv is a QEMU command line, parsed: the program, then its options in order.
type Argv struct {
	Program string
	Args    []Arg
}

// Arg is one option with its argument, or a bare word (a disk image).
type Arg struct {
	// Name is without dashes, such as "netdev"; empty for a bare word.
	Name string
	// Dashes is "-" or "--", as it was written.
	Dashes string
	// Value is the argument; HasValue is false for a flag like -S.
	Value    string
	HasValue bool
}

// flags are QEMU's options that take no argument, of every version from 4.0 to
// 11; every other option takes the next word, whatever that looks like.
var flags = wordSet(`h help version usb snapshot mem-prealloc nographic full-screen
	alt-grab ctrl-grab show-cursor no-quit no-frame sdl curses portrait win2k-hack
	no-fd-bootchk no-acpi no-hpet S s singlestep one-insn-per-tick preconfig xen-attach
	xen-domid-restrict enable-kvm no-kvm no-kvm-irqchip no-kvm-pit no-kvm-pit-reinjection
	no-reboot no-shutdown daemonize only-migratable nodefaults no-user-config nodefconfig
	semihosting old-param async-teardown audio-help enable-sync-profile enable-fips
	localtime tdf`)

func wordSet(words string) map[string]bool {
	set := make(map[string]bool)
	for _, w := range strings.Fields(words) {
		set[w] = true
	}
	return set
}

// ParseArgv parses a command line as QEMU does; the first word is the program.
func ParseArgv(argv []string) (Argv, error) {
	if len(argv) == 0 || argv[0] == "" {
		return Argv{}, detailed(ErrArgv, "it is empty")
	}
	p := Argv{Program: argv[0]}
	for i := 1; i < len(argv); i++ {
		word := argv[i]
		if !strings.HasPrefix(word, "-") || word == "-" {
			p.Args = append(p.Args, Arg{Value: word, HasValue: true})
			continue
		}
		a := Arg{Dashes: "-", Name: word[1:]}
		if strings.HasPrefix(word, "--") {
			a.Dashes, a.Name = "--", word[2:]
		}
		if a.Name == "" {
			return Argv{}, detailed(ErrArgv, "word %d is %q", i, word)
		}
		if !flags[a.Name] {
			if i++; i == len(argv) {
				return Argv{}, detailed(ErrArgv, "option %s lacks its argument", word)
			}
			a.Value, a.HasValue = argv[i], true
		}
		p.Args = append(p.Args, a)
	}
	return p, nil
}

// Words is the command line again.
func (p Argv) Words() []string {
	words := []string{p.Program}
	for _, a := range p.Args {
		if a.Name != "" {
			words = append(words, a.Dashes+a.Name)
		}
		if a.HasValue {
			words = append(words, a.Value)
		}
	}
	return words
}

// add appends an option.
func (p *Argv) add(name string, value ...string) {
	a := Arg{Dashes: "-", Name: name}
	if len(value) > 0 {
		a.Value, a.HasValue = value[0], true
	}
	p.Args = append(p.Args, a)
}

// remove drops every option for which drop answers true.
func (p *Argv) remove(drop func(Arg) bool) {
	p.Args = slices.DeleteFunc(p.Args, drop)
}

// options parses the argument.
func (a Arg) options() (Options, error) { return ParseOptions(a.Value) }

// id is the "id" of the argument, or of -mon and the like what names it.
func (a Arg) id() string {
	if !a.HasValue {
		return ""
	}
	o, err := a.options()
	if err != nil {
		return ""
	}
	for _, key := range []string{"id", "node-name"} {
		if v, ok := o.Get(key); ok {
			return v
		}
	}
	return ""
}

// edit changes the argument through its options, leaving it byte for byte as it
// was when f changes nothing.
func (a *Arg) edit(f func(*Options)) error {
	o, err := a.options()
	if err != nil {
		return err
	}
	before := o.String()
	f(&o)
	if after := o.String(); after != before {
		a.Value = after
	}
	return nil
}
