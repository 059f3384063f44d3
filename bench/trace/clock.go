package trace

import (
	"container/heap"
	"time"
)

// epoch is the simulation's time 0 for what takes a time.Time; any would do.
var epoch = time.Unix(1_000_000_000, 0)

// event is something that happens at a time.
type event struct {
	at  time.Duration
	seq uint64 // in order of their making, where times are equal
	do  func()
}

// clock runs events in the order of time.
type clock struct {
	now    time.Duration
	seq    uint64
	events events
}

// at has do run at a time, now at the earliest.
func (c *clock) at(t time.Duration, do func()) {
	c.seq++
	heap.Push(&c.events, event{max(t, c.now), c.seq, do})
}

func (c *clock) after(d time.Duration, do func()) { c.at(c.now+d, do) }

// wall is the present time for the planner's parts.
func (c *clock) wall() time.Time { return epoch.Add(c.now) }

// step runs the next event; false says that there is none.
func (c *clock) step() bool {
	if len(c.events) == 0 {
		return false
	}
	e := heap.Pop(&c.events).(event)
	c.now = e.at
	e.do()
	return true
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	n := len(*e) - 1
	x := (*e)[n]
	(*e)[n] = event{}
	*e = (*e)[:n]
	return x
}
