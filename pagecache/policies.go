package pagecache

import (
	"fmt"
	"slices"
	"strings"
)

// PolicyNames are the policies that can be chosen by name, in the order in which
// a planner asks them.
var PolicyNames = []string{"hot", "around", "bubbles", "sweep"}

// DefaultPolicyNames are those that a relocation uses if it is told nothing: all
// but the hot list, which costs downtime and has not paid (docs/PRECACHE.md).
var DefaultPolicyNames = []string{"around", "bubbles", "sweep"}

// DefaultPolicies returns what a relocation uses if it is told nothing.
func DefaultPolicies() []Policy {
	p, _ := Policies(DefaultPolicyNames) // knows its own names
	return p
}

// Policies returns the named policies, in the order in which they are asked,
// whatever the order of names. They serve one planner.
func Policies(names []string) ([]Policy, error) {
	for _, n := range names {
		if !slices.Contains(PolicyNames, n) {
			return nil, fmt.Errorf("precache policy %q is not one of %s", n, strings.Join(PolicyNames, ", "))
		}
	}
	var out []Policy
	for _, n := range PolicyNames {
		if !slices.Contains(names, n) {
			continue
		}
		switch n {
		case "hot":
			out = append(out, NewHot(HotConfig{}))
		case "around":
			out = append(out, NewAround(AroundConfig{}))
		case "bubbles":
			out = append(out, NewBubbles(BubbleConfig{}))
		case "sweep":
			out = append(out, NewSweep(SweepConfig{FollowFaults: true}))
		}
	}
	return out, nil
}
