package kvmrig

// Plan is what the VM does; it lies in the initramfs as /plan.json.
type Plan struct {
	// Modules are paths inside the VM, in the order of loading.
	Modules []string
	// Programs are run one after the other, each whatever the others did.
	Programs []Program
}

// Program is a test binary.
type Program struct {
	Name string   // unique, without spaces
	Path string   // on the host for [Run]; in the VM in /plan.json
	Args []string // without the program's name
	Env  []string // in addition to PATH and HOME
}

// TokenParam is the kernel parameter with the token of a boot.
const TokenParam = "kvmrig.token="

// Lines of the second serial port begin with Mark and the token, if they are
// the rig's: "begin NAME", "end NAME CODE", "verdict ok" or "verdict TEXT".
const Mark = "kvmrig:"
