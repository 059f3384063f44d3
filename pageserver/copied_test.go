package pageserver

import (
	"testing"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// What a peer fetches decides how much is read into memory of the server's: no more than
// an answer could ever need.
func TestFetchesThatAreCopiedAreBounded(t *testing.T) {
	const huge, pages = 2 << 20, 512
	fd, err := sysmem.CreateMemfd("huge", pages*huge, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	im, err := Open([]Source{{Region: transport.Region{ID: 1, Pages: pages, PageSize: huge}, FD: fd}})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Release()
	fetch := func(count uint32) (*refusal, int) {
		c := &channel{im: im, stats: new(Stats)}
		defer c.scratch.close()
		no, err := c.prepare(transport.Fetch{ID: 1, Range: transport.Range{Region: 1, Count: count}})
		if err != nil {
			t.Fatal(err)
		}
		return no, len(c.scratch.buf)
	}
	for _, live := range []bool{false, true} {
		if live {
			im.SetState(Live)
		} else {
			im.byID[1].how = byRead
		}
		if no, n := fetch(pages); no == nil || no.code != transport.CodeRange || n > maxCopied {
			t.Errorf("live %v: a fetch of 1 GiB: refusal %v, %d bytes of memory", live, no, n)
		}
		if no, _ := fetch(maxCopied / huge); no != nil {
			t.Errorf("live %v: a fetch of %d bytes is refused: %v", live, maxCopied, no)
		}
		im.byID[1].how = byMincore
	}
	im.SetState(Frozen)
	if no, n := fetch(pages); no != nil || n != 0 {
		t.Errorf("a fetch of 1 GiB of a mapped image: refusal %v, %d bytes of memory", no, n)
	}
}
