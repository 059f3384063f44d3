package vmtest

import (
	"os"
	"path/filepath"
	"testing"
)

// Where the guest of Writer writes, in bytes: over the end of the pattern and on.
const (
	WriterOffset = 70 << 20
	WriterBytes  = 4 << 20
)

// writerSector boots into protected mode and writes WriterBytes from WriterOffset
// on, word by word, each word another value, again and again without a pause:
//
//	      cli; xor %ax,%ax; mov %ax,%ds
//	      in $0x92,%al; or $2,%al; out %al,$0x92        // A20
//	      lgdtl gdtr; mov %cr0,%eax; or $1,%al; mov %eax,%cr0; ljmp $8,$pm
//	pm:   mov $16,%ax; mov %ax,%ds; mov %ax,%es; xor %eax,%eax
//	more: mov $0x4600000,%edi; mov $0x100000,%ecx
//	word: mov %eax,(%edi); add $0x9e3779b9,%eax; add $4,%edi; loop word
//	      jmp more
//	gdt:  0, flat code, flat data; gdtr: 23, gdt
var writerSector = []byte{
	0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xe4, 0x92, 0x0c, 0x02, 0xe6, 0x92, 0x66, 0x0f, 0x01, 0x16, 0x58,
	0x7c, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0xea, 0x1e, 0x7c, 0x08, 0x00, 0x66, 0xb8,
	0x10, 0x00, 0x8e, 0xd8, 0x8e, 0xc0, 0x31, 0xc0, 0xbf, 0x00, 0x00, 0x60, 0x04, 0xb9, 0x00, 0x00,
	0x10, 0x00, 0x89, 0x07, 0x05, 0xb9, 0x79, 0x37, 0x9e, 0x83, 0xc7, 0x04, 0xe2, 0xf4, 0xeb, 0xe8,
	0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00,
	0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00, 0x17, 0x00, 0x40, 0x7c, 0x00, 0x00,
}

// Writer returns the arguments for Start of a machine that runs such a guest. It is
// booted when Writes says so.
func Writer(t testing.TB) []string {
	t.Helper()
	sector := make([]byte, 1<<20) // the BIOS reads no disk of a single sector
	copy(sector, writerSector)
	sector[510], sector[511] = 0x55, 0xaa
	path := filepath.Join(t.TempDir(), "writer.img")
	if err := os.WriteFile(path, sector, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"-drive", "if=none,id=boot,format=raw,readonly=on,file=" + path, "-device", "virtio-blk-pci,drive=boot"}
}

// Writes waits until the guest of a machine with this RAM file writes.
func Writes(t testing.TB, ram string) {
	t.Helper()
	mem := MapRAM(t, ram)
	at := mem[WriterOffset+WriterBytes-pageBytes+3:] // the low bits are the same in each round
	first := at[0]
	Wait(t, "the guest to write", func() bool { return at[0] != first })
}
