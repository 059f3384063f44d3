package daemon

import (
	"bytes"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/config"
)

// applied are the keys that SIGHUP takes over; the rest must be named as waiting for the
// next start, or an operator believes that it is in force.
var applied = []string{"shutdown_timeout", "tls.cert", "tls.key", "tls.peers", "log.level",
	"relocate.bandwidth", "relocate.host_bandwidth", "relocate.codec", "relocate.demand_channels", "relocate.precache_channels", "templates"}

func TestReloadKnowsEveryKey(t *testing.T) {
	base := config.Default()
	base.TLS = config.TLS{CA: "/ca", Cert: "/c", Key: "/k"}
	n := 0
	var walk func(at string, field func(*config.Config) reflect.Value)
	walk = func(at string, field func(*config.Config) reflect.Value) {
		c := base
		v := field(&c)
		if v.Kind() == reflect.Struct {
			for i := range v.NumField() {
				tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("toml"), ",")
				walk(strings.TrimPrefix(at+"."+tag, "."), func(c *config.Config) reflect.Value { return field(c).Field(i) })
			}
			return
		}
		switch v.Kind() {
		case reflect.String:
			v.SetString("/changed")
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Int, reflect.Int64:
			v.SetInt(v.Int() + 1)
		case reflect.Uint64:
			v.SetUint(v.Uint() + 1)
		case reflect.Float64:
			v.SetFloat(v.Float() + 1)
		case reflect.Slice:
			v.Set(reflect.ValueOf([]string{"unix:/changed"}))
		case reflect.Map:
			m := reflect.MakeMap(v.Type())
			m.SetMapIndex(reflect.ValueOf("web1"), reflect.New(v.Type().Elem()).Elem())
			v.Set(m)
		default:
			t.Fatalf("%s is a %v, which this test does not know to change", at, v.Kind())
		}
		n++
		if keys := fixed(base, c); (len(keys) == 0) != slices.Contains(applied, at) {
			t.Errorf("%s changed: waiting for the next start is %q", at, keys)
		}
	}
	walk("", func(c *config.Config) reflect.Value { return reflect.ValueOf(c).Elem() })
	if n < 30 {
		t.Errorf("only %d keys were changed", n)
	}
}

func TestLogHasUnits(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		var b bytes.Buffer
		NewLog(&b, format, new(slog.LevelVar)).Info("done", "after", 1713444948*time.Nanosecond)
		if !strings.Contains(b.String(), "1.713444948s") {
			t.Errorf("%s: %s", format, b.String())
		}
	}
}
