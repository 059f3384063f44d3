package model

import (
	"fmt"
	"strconv"
	"strings"
)

// pageSpec is one line of a workload's table. flows has the visits to the
// following pages per 10,000 requests, as "name N, name N, end N".
type pageSpec struct {
	page  Page
	flows string
}

// chain turns the table into pages with transition probabilities. starts is
// how many sessions begin per 10,000 requests. The tables are constants of the
// program: one that does not balance is a mistake in it, and panics at start.
func chain(starts int, table []pageSpec) []Page {
	pages := make([]Page, len(table))
	index := map[string]int{"end": End}
	for i, s := range table {
		pages[i] = s.page
		if pages[i].Type == "" {
			pages[i].Type = s.page.Name
		}
		index[s.page.Name] = i
	}
	in := make([]int, len(table))
	in[0] = starts
	out := make([]int, len(table))
	ends := 0
	for i, s := range table {
		type flow struct{ to, visits int }
		var flows []flow
		for _, f := range strings.Split(s.flows, ", ") {
			name, number, _ := strings.Cut(f, " ")
			to, known := index[name]
			visits, err := strconv.Atoi(number)
			if !known || err != nil || visits <= 0 {
				panic(fmt.Sprintf("page %s: flow %q: want NAME VISITS with the name of a page or end", s.page.Name, f))
			}
			flows = append(flows, flow{to, visits})
			out[i] += visits
			if to == End {
				ends += visits
			} else {
				in[to] += visits
			}
		}
		sum := 0
		for _, f := range flows {
			sum += f.visits
			pages[i].next = append(pages[i].next, transition{upTo: float64(sum) / float64(out[i]), page: f.to})
		}
	}
	for i := range table {
		if in[i] != out[i] {
			panic(fmt.Sprintf("page %s: %d visits flow in and %d flow out", pages[i].Name, in[i], out[i]))
		}
	}
	if ends != starts {
		panic(fmt.Sprintf("%d sessions start and %d end", starts, ends))
	}
	return pages
}
