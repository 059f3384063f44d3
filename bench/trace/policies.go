package trace

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pagewarp/pagewarp/pagecache"
)

// A policyMaker makes a policy for one simulation; the trace is for those that
// take knowledge of the past from somewhere.
type policyMaker func(t *Trace) []pagecache.Policy

// policies are what lists of policies are made of.
var policies = map[string]policyMaker{
	"default": func(*Trace) []pagecache.Policy { return pagecache.DefaultPolicies() },
	"bubbles": func(*Trace) []pagecache.Policy {
		return []pagecache.Policy{pagecache.NewBubbles(pagecache.BubbleConfig{})}
	},
	"bubbles-small": func(*Trace) []pagecache.Policy {
		return []pagecache.Policy{pagecache.NewBubbles(pagecache.BubbleConfig{Radius: 4})}
	},
	"sweep": func(*Trace) []pagecache.Policy {
		return []pagecache.Policy{pagecache.NewSweep(pagecache.SweepConfig{})}
	},
	"follow": func(*Trace) []pagecache.Policy {
		return []pagecache.Policy{pagecache.NewSweep(pagecache.SweepConfig{FollowFaults: true})}
	},
	"hot": func(*Trace) []pagecache.Policy { return []pagecache.Policy{pagecache.NewHot(pagecache.HotConfig{})} },
	"around": func(*Trace) []pagecache.Policy {
		return []pagecache.Policy{pagecache.NewAround(pagecache.AroundConfig{})}
	},
	"none": func(*Trace) []pagecache.Policy { return nil },
}

// PolicyNames returns the names that ParsePolicies knows.
func PolicyNames() []string { return slices.Sorted(maps.Keys(policies)) }

// MakePolicies makes a list of policies of a text such as "bubbles+sweep", in
// the order in which the planner asks them.
func MakePolicies(text string, t *Trace) ([]pagecache.Policy, error) {
	var list []pagecache.Policy
	for _, name := range strings.Split(text, "+") {
		m, ok := policies[name]
		if !ok {
			return nil, fmt.Errorf("policy %q: choose of %s, several as A+B", name, strings.Join(PolicyNames(), ", "))
		}
		list = append(list, m(t)...)
	}
	return list, nil
}
