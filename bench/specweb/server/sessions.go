package server

import (
	"container/list"
	"strconv"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/bench/guest/workset"
)

// sessionPages is how many pages of memory a session has; each request
// verifies all and rewrites one.
const sessionPages = 4

// session is the state of one visitor.
type session struct {
	id   string
	slot int // its pages in the set; immutable

	mu      sync.Mutex
	user    uint64    // immutable
	count   uint64    // requests so far; guarded by mu
	visited []string  // the pages seen last; guarded by mu
	used    time.Time // guarded by sessions.mu
	element *list.Element
}

// sessions holds the sessions in memory, bounded: with no slot left, the
// session that was used least recently ends early, which is counted.
type sessions struct {
	set     *workset.Set // immutable
	timeout time.Duration
	now     func() time.Time

	mu      sync.Mutex
	byID    map[string]*session
	recent  *list.List // of *session, the most recently used first
	free    []int      // slots
	next    uint64     // number of the next session
	evicted uint64
	expired uint64
}

func newSessions(set *workset.Set, timeout time.Duration) *sessions {
	s := &sessions{set: set, timeout: timeout, now: time.Now, byID: map[string]*session{}, recent: list.New()}
	for slot := set.Pages()/sessionPages - 1; slot >= 0; slot-- {
		s.free = append(s.free, slot)
	}
	return s
}

// start begins a session for user.
func (s *sessions) start(user uint64) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	if len(s.free) == 0 {
		s.remove(s.recent.Back().Value.(*session))
		s.evicted++
	}
	n := len(s.free) - 1
	x := &session{id: strconv.FormatUint(s.next, 36) + "-" + strconv.FormatUint(user, 36), slot: s.free[n], user: user, used: s.now()}
	s.free = s.free[:n]
	s.next++
	x.element = s.recent.PushFront(x)
	s.byID[x.id] = x
	return x
}

// find returns a session and marks it as used, or nil.
func (s *sessions) find(id string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	x := s.byID[id]
	if x != nil {
		x.used = s.now()
		s.recent.MoveToFront(x.element)
	}
	return x
}

// end ends a session, as a logout does.
func (s *sessions) end(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[x.id] == x {
		s.remove(x)
	}
}

// expire ends what has timed out. The caller holds mu.
func (s *sessions) expire() {
	limit := s.now().Add(-s.timeout)
	for e := s.recent.Back(); e != nil && e.Value.(*session).used.Before(limit); e = s.recent.Back() {
		s.remove(e.Value.(*session))
		s.expired++
	}
}

func (s *sessions) remove(x *session) {
	s.recent.Remove(x.element)
	delete(s.byID, x.id)
	s.free = append(s.free, x.slot)
}

func (s *sessions) counts() (live int, started, expired, evicted uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byID), s.next, s.expired, s.evicted
}

// request notes one request for page in the session: it verifies the session's
// memory, writes part of it, and returns the number of this request, from 1,
// and whether the memory was good.
func (x *session) request(set *workset.Set, page string) (count uint64, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.count++
	if x.visited = append(x.visited, page); len(x.visited) > 8 {
		x.visited = append(x.visited[:0], x.visited[1:]...)
	}
	ok = true
	for i := range sessionPages {
		n := x.slot*sessionPages + i
		if uint64(i) == x.count%sessionPages {
			ok = set.Rewrite(n) && ok
			continue
		}
		_, good := set.Read(n, nil)
		ok = good && ok
	}
	return x.count, ok
}

// trail returns the pages seen last.
func (x *session) trail() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([]string(nil), x.visited...)
}
