package micro

import "math/rand/v2"

const (
	pageSize  = 4096
	lineSize  = 64
	pageLines = pageSize / lineSize
)

// Kind is a kind of page data.
type Kind struct {
	Name string
	fill func(rnd *rand.Rand, page []byte)
}

// Kinds are the data that [Codec] measures: pages of which the named share of
// their lines of 64 bytes, at random places, is zero and the rest noise; and text.
var Kinds = []Kind{
	{"noise", lines(0)}, {"0.5", lines(0.5)}, {"0.9", lines(0.9)}, {"text", text},
}

// pages returns n bytes of whole pages, the same at every call.
func (k Kind) pages(n int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for at := 0; at < n; at += pageSize {
		k.fill(rnd, b[at:at+pageSize])
	}
	return b
}

func lines(zero float64) func(*rand.Rand, []byte) {
	noisy := pageLines - int(zero*pageLines)
	return func(rnd *rand.Rand, page []byte) {
		for _, l := range rnd.Perm(pageLines)[:noisy] {
			line := page[l*lineSize : (l+1)*lineSize]
			for i := range line {
				line[i] = byte(rnd.Uint32())
			}
		}
	}
}

// vocabulary is how many words text has.
const vocabulary = 2000

// text fills a page with words of 2 to 10 letters whose frequency falls with
// their rank (Zipf, exponent 1.1), as those of natural language do.
func text(rnd *rand.Rand, page []byte) {
	zipf := rand.NewZipf(rnd, 1.1, 1, vocabulary-1)
	for at := 0; at < len(page); {
		// The rank is the seed: a word is the same wherever it stands.
		word := rand.New(rand.NewPCG(zipf.Uint64(), 3))
		for n := 2 + word.IntN(9); n > 0 && at < len(page); n-- {
			page[at] = 'a' + byte(word.IntN(26))
			at++
		}
		if at < len(page) {
			page[at] = ' '
			at++
		}
	}
}
