package rdma

// flights holds what is outstanding, by id. It is no map, whose changes are a tenth of a
// demand fetch's own time: the engine's ids end in the number of a place, so that those of
// one time differ in their low bits.
type flights struct {
	chains [512]*flight // by the id's low bits
	n      int
}

func (x *flights) chain(id uint64) **flight { return &x.chains[id%uint64(len(x.chains))] }

// at returns the flight with an id, or nil.
func (x *flights) at(id uint64) *flight {
	fl := *x.chain(id)
	for fl != nil && fl.ID != id {
		fl = fl.next
	}
	return fl
}

// add adds one whose id is not there.
func (x *flights) add(fl *flight) {
	head := x.chain(fl.ID)
	fl.next, *head = *head, fl
	x.n++
}

// remove takes one out that is there.
func (x *flights) remove(fl *flight) {
	p := x.chain(fl.ID)
	for *p != fl {
		p = &(*p).next
	}
	*p, fl.next = fl.next, nil
	x.n--
}

// each calls f for all of them, which changes none.
func (x *flights) each(f func(*flight)) {
	for _, fl := range x.chains {
		for ; fl != nil; fl = fl.next {
			f(fl)
		}
	}
}
