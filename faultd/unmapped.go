package faultd

import (
	"slices"
	"sync"
)

// addresses are those from from on, before to.
type addresses struct{ from, to uint64 }

// unmapped are the parts of areas that the process has unmapped since they were
// registered. What is mapped there now is not ours.
type unmapped struct {
	mu   sync.Mutex
	gone []addresses // guarded by mu; in order, without overlaps
}

func (u *unmapped) add(a addresses) {
	u.mu.Lock()
	defer u.mu.Unlock()
	at, _ := slices.BinarySearchFunc(u.gone, a.from, func(g addresses, from uint64) int {
		if g.to < from {
			return -1
		}
		return 1
	})
	end := at
	for ; end < len(u.gone) && u.gone[end].from <= a.to; end++ {
		a.from, a.to = min(a.from, u.gone[end].from), max(a.to, u.gone[end].to)
	}
	u.gone = slices.Replace(u.gone, at, end, a)
}

// rest returns what of a is not unmapped.
func (u *unmapped) rest(a addresses) (parts []addresses) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, g := range u.gone {
		if a.from < min(g.from, a.to) {
			parts = append(parts, addresses{a.from, min(g.from, a.to)})
		}
		a.from = max(a.from, g.to)
	}
	if a.from < a.to {
		parts = append(parts, a)
	}
	return parts
}
