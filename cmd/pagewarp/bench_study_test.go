package main

import (
	"strings"
	"testing"
)

func TestBenchStudyUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--only", "zpif"}, "did you mean zipf?"},
		{[]string{"--rtt", "soon"}, "--rtt soon"},
		{[]string{"--link", "none"}, "--link none"},
		{[]string{"--repeat", "0"}, "--repeat 0"},
	} {
		said := &whenSaid{}
		if code, _ := runBench(t, said, append([]string{"trace", "study"}, c.args...)...); code != exitUsage || !strings.Contains(said.b.String(), c.want) {
			t.Errorf("%q: exit code %d, %q; want %q", c.args, code, said.b.String(), c.want)
		}
	}
}
