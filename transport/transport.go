package transport

import (
	"errors"
	"time"
)

// Kind is the purpose of a channel. Each kind has connections of its own, so
// that a demand answer never waits behind precache bytes.
type Kind uint8

// The channel kinds of PROTOCOL section 4.
const (
	Control  Kind = 1
	Demand   Kind = 2
	Precache Kind = 3
)

// String returns the kind's name as it stands in logs and metrics.
func (k Kind) String() string {
	switch k {
	case Control:
		return "control"
	case Demand:
		return "demand"
	case Precache:
		return "precache"
	}
	return "unknown"
}

// Range is a run of pages of one region. Pages are counted in units of the
// region's page size.
type Range struct {
	Region uint32 // region id
	Count  uint32 // pages
	First  uint64 // number of the first page
}

// Region describes one block of the image.
type Region struct {
	ID       uint32 `json:"id"`
	Name     string `json:"name"`
	Pages    uint64 `json:"pages"`
	PageSize uint32 `json:"page_size"` // bytes: 4 KiB, 2 MiB or 1 GiB
}

// ExtentKind says how the pages of an extent are represented.
type ExtentKind uint8

// The extent kinds of PROTOCOL section 5.
const (
	Data ExtentKind = 0 // bytes follow
	Fill ExtentKind = 1 // each page repeats one 8-byte word
	Same ExtentKind = 2 // each page is what the destination's candidate is (PROTOCOL section 12)
	// Repeat: each page is what a data page of the same answer is.
	Repeat ExtentKind = 3
	// Moved: each page is what the destination's candidate of another page is (PROTOCOL
	// section 12).
	Moved ExtentKind = 4
)

// Extent is a run of pages of one representation within an answer.
type Extent struct {
	Count uint32
	Kind  ExtentKind
	// Word is, of Fill, the little-endian word, 0 for a zero page; of Repeat, the
	// number of the page repeated among the data pages of the answer, from 0; of Moved,
	// the number in the region of the first page's candidate, which those of the
	// following pages follow.
	Word uint64
}

// Fetch is one request as the source sees it.
type Fetch struct {
	ID uint64
	Range
	// Plain wants no Same and no Moved extents in the answer. It is only for channels
	// with FeatureWarm in force.
	Plain bool
}

// Answer is what a [Responder] sends for one fetch.
type Answer struct {
	Fetch
	// Extents covers the range in order; nil means that every page is data.
	Extents []Extent
	// Memory holds Count pages, those of all other extents than Data included (they
	// are read only if the channel cannot say it shorter). It is not retained after Answer returns.
	Memory []byte
	// Ahead counts the pages after the range that read as zero too.
	Ahead uint32
}

// Responder is the source's end of a page channel. Next and the answering
// methods may run in different goroutines; each by one at a time.
type Responder interface {
	// Next waits for fetches and puts as many as are there, at least one, into
	// buf. It returns io.EOF after an orderly close.
	Next(buf []Fetch) (int, error)
	// Answer sends one answer, encoded as the channel sees fit.
	Answer(*Answer) error
	// Refuse answers one fetch with an error; the channel lives on.
	Refuse(id uint64, code Code, text string) error
	Close() error
}

// Sink is where a destination's pages land. Reserve claims pages for writing,
// the channel writes them, and Commit or Abort ends the claim. Calls for
// different channels run concurrently. The slices stay valid until Commit or
// Abort returns; the channel retains neither them nor dst.
//
// One answer may become several calls: a long run of zero pages is reported by
// Zero and never reserved, and the pages around it are reserved and committed
// run by run, in order. A short one between other pages is reserved with them
// and written as zero bytes. Commit and Zero come only after the whole answer
// has been verified. If one of them fails, what it was called for is the sink's
// own to settle; the runs that follow are aborted, and the fetch stays
// outstanding.
type Sink interface {
	// Reserve claims the pages of r that may be written and sets dst[i] to the
	// memory of page r.First+i, exactly one page long, or to nil if that page
	// must be dropped because it has been claimed before. len(dst) is r.Count.
	// Pages that lie side by side in memory are received in one piece; their
	// memory must then be one mapping.
	Reserve(r Range, dst [][]byte)
	// Commit says that every non-nil dst[i] holds verified content.
	Commit(r Range, dst [][]byte) error
	// Abort gives the non-nil pages back unwritten (their memory may hold
	// anything).
	Abort(r Range, dst [][]byte)
	// Zero says that the pages of r, which are not reserved by this channel, read
	// as zero; those already claimed are to be left alone. Count may be far
	// larger than a fetch's.
	Zero(r Range) error
}

// WarmSink is a Sink that has candidates. A channel with FeatureWarm in force
// needs one.
type WarmSink interface {
	Sink
	// Same says that the source holds, at the pages of r, what the sink's own
	// candidates are; dst is as Reserve left it, and nothing was written there.
	// It comes once the answer was verified, before Commit of the runs around.
	// The sink verifies each page, makes it resident or gives it back, and sets
	// all of dst to nil.
	Same(r Range, dst [][]byte) error
	// Moved says that the source holds, at the pages of r, what the sink's candidates
	// of the pages from from on are, which lie in the region; dst is as Reserve left it.
	// It comes when Same does. The sink copies what it can verify into dst, for Commit,
	// gives the other pages back, and sets their dst[i] to nil.
	Moved(r Range, from uint64, dst [][]byte) error
}

// TakeSink is a [Sink] that can have pages from the Fetcher's own memory, for
// fetchers that read into such (RDMA READ).
type TakeSink interface {
	Sink
	// Takes says whether Take is what this sink wants at the moment.
	Takes() bool
	// Take is Reserve, copying and Commit in one: it claims the pages of r, makes
	// those it got resident with the content src, one slice a page and contiguous
	// in memory, and leaves src in any state.
	Take(r Range, src [][]byte) error
}

// Lending is what a [LendSink] says of a run of pages.
type Lending uint8

// The answers of a LendSink.
const (
	Lent     Lending = iota // claimed; a device may write to their memory
	Staged                  // to be read elsewhere, and given to Take or Reserve then
	Unwanted                // claimed before, or there: not to be read
)

// LendSink is a [Sink] some of whose absent pages have memory that a device may write
// to by itself, so that they are in place when a READ completes. Which ones, and where,
// the Fetcher has learnt beforehand (rdma.Landing): memory that was allocated before.
//
// A page that is lent is claimed like one that Reserve gave, but from the asking on, not
// from the answer: whoever wants it waits for the READ. So what a Fetcher has lent at a
// time must be short. Each page lent is ended once, by Landed or by Reclaim.
type LendSink interface {
	Sink
	// Lend looks at the pages of r, which lie in memory that the Fetcher knows of, and
	// returns how the first n of them, at least one, are to come. Those that are Lent are
	// claimed. It never waits, and may be called concurrently with everything else.
	Lend(r Range) (n uint32, how Lending)
	// Landed says that lent pages are in place; their memory holds zeroes if zero, and
	// is given back then. After an error the claims of r are settled.
	Landed(r Range, zero bool) error
	// Reclaim takes lent pages back whose READs failed. Nothing writes to their memory
	// any more, which may hold anything: it is emptied, and they are not lent again.
	Reclaim(r Range)
}

// Poller is a [Fetcher] whose answers the thread that asked can take as well, so that
// no other has to be woken for what comes sooner than that.
type Poller interface {
	Fetcher
	// FetchAndPoll is Fetch for a caller that calls Poll next.
	FetchAndPoll(fs []Fetch) error
	// Poll does for an answered fetch what Receive would, and reports true, or false if
	// none has come within the short time that the channel was told to poll. It is to
	// be called until it says false, by one goroutine at a time, which holds no lock
	// that the sink takes. It never waits for Receive, and leaves errors to it.
	Poll(c *Completion) bool
}

// Completion describes one answered fetch.
type Completion struct {
	Fetch
	Sent      time.Time     // when the FETCH was handed to the socket
	Wire      time.Duration // from Sent to the last byte of the answer
	Decode    time.Duration // verifying and decompressing
	Commit    time.Duration // inside Sink.Commit and Sink.Zero
	WireBytes int           // header and body of the answer
	Data      uint32        // pages that came as bytes
	Fill      uint32        // pages that came as a non-zero fill word
	Same      uint32        // pages that the source found to be as the candidates
	Moved     uint32        // pages that the source found to be as candidates of other pages
	Repeat    uint32        // pages that came as a repeat of another one
	Zero      uint32        // pages of the range that read as zero
	Ahead     uint32        // zero pages after the range
	Codec     Codec
	Refused   error // the source's REFUSE; nothing was delivered
}

// InPlace is implemented by a [Fetcher] that brings pages to their final memory
// by itself (RDMA READ): what Sink.Reserve gives must then be that memory, never
// a buffer.
type InPlace interface{ InPlace() bool }

// ErrNotSent is wrapped by errors of [Fetcher.Fetch] about requests that no connection with
// these limits, features and regions can carry.
var ErrNotSent = errors.New("the channel cannot carry this fetch")

// Fetcher is the destination's end of a page channel.
type Fetcher interface {
	// Fetch sends requests in one write and does not wait for answers. It is
	// safe for concurrent use. Requests that the channel cannot carry (outside
	// the region, over max_count, an id twice) are the caller's mistake: none
	// is sent. Where another connection would not carry them either the error
	// wraps ErrNotSent. Any other error is fatal to the channel, and the requests are
	// outstanding.
	Fetch(fs []Fetch) error
	// Receive waits for one answer, lets the sink have its pages, and fills in
	// c. One goroutine at a time. An error is fatal to the channel; what was
	// outstanding must be fetched elsewhere, and Outstanding tells it. After an
	// orderly close by the source errors.Is(err, io.EOF) holds.
	Receive(sink Sink, c *Completion) error
	// Outstanding appends the fetches that have not been answered to buf.
	Outstanding(buf []Fetch) []Fetch
	Close() error
}

// Side takes the RDMA frames of a page channel. It is called by the goroutine
// that reads the channel (in Receive or Next), one frame at a time; body is valid
// during the call. It must not wait for the channel. An error ends the channel.
type Side func(h Header, body []byte) error
