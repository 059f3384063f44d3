package qemu

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Options is the argument of one QEMU option: "virtio,id=x,path=a,,b", or the
// JSON object that newer options also take. QEMU's syntax (util/qemu-option.c):
// elements are separated by commas, a doubled comma in a value is one comma, and
// an element without '=' is the implied first value or a flag.
type Options struct {
	elems []element
	json  map[string]any // instead of elems
}

// element is one "key=value", or a bare value. A key never holds ',' or '='.
type element struct {
	key   string
	value string // unescaped
	keyed bool
}

// ParseOptions parses one argument. Every string without a leading '{' is valid,
// and String gives it back byte for byte.
func ParseOptions(s string) (Options, error) {
	if strings.HasPrefix(s, "{") {
		dec := json.NewDecoder(strings.NewReader(s))
		dec.UseNumber() // sizes exceed a float's precision
		var o Options
		if err := dec.Decode(&o.json); err != nil {
			return Options{}, detailed(ErrArgv, "JSON argument %.60q: %w", s, err)
		}
		if _, err := dec.Token(); err != io.EOF {
			return Options{}, detailed(ErrArgv, "JSON argument %.60q: more follows the object", s)
		}
		return o, nil
	}
	var o Options
	for {
		var e element
		if i := strings.IndexAny(s, "=,"); i >= 0 && s[i] == '=' {
			e.key, e.keyed, s = s[:i], true, s[i+1:]
		}
		var v strings.Builder
		for {
			i := strings.IndexByte(s, ',')
			if i < 0 {
				v.WriteString(s)
				e.value = v.String()
				o.elems = append(o.elems, e)
				return o, nil
			}
			v.WriteString(s[:i])
			s = s[i+1:]
			if !strings.HasPrefix(s, ",") {
				break
			}
			v.WriteByte(',')
			s = s[1:]
		}
		e.value = v.String()
		o.elems = append(o.elems, e)
	}
}

// String is the argument again, with commas in values doubled.
func (o Options) String() string {
	if o.json != nil {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(o.json); err != nil {
			return fmt.Sprintf("{%q: %q}", "error", err) // cannot happen: it was decoded from JSON
		}
		return strings.TrimSuffix(b.String(), "\n")
	}
	var b strings.Builder
	for i, e := range o.elems {
		if i > 0 {
			b.WriteByte(',')
		}
		if e.keyed {
			b.WriteString(e.key)
			b.WriteByte('=')
		}
		b.WriteString(EscapeValue(e.value))
	}
	return b.String()
}

// EscapeValue doubles the commas of a value, as QEMU's option syntax wants them.
func EscapeValue(v string) string { return strings.ReplaceAll(v, ",", ",,") }

// Get returns the value of a key, the last one where it is repeated (as QEMU
// does). A bare word "key" in a later place is the flag "key=on".
func (o Options) Get(key string) (string, bool) {
	if o.json != nil {
		switch v := o.json[key].(type) {
		case nil:
			return "", false
		case string:
			return v, true
		case bool:
			if v {
				return "on", true
			}
			return "off", true
		default:
			return fmt.Sprint(v), true
		}
	}
	for i, e := range slices.Backward(o.elems) {
		switch {
		case e.keyed && e.key == key:
			return e.value, true
		case !e.keyed && i > 0 && e.value == key:
			return "on", true
		}
	}
	return "", false
}

// Kind is the first, bare value ("tap" of "tap,id=n"), or that of the key which
// it stands for.
func (o Options) Kind(key string) string {
	if len(o.elems) > 0 && !o.elems[0].keyed {
		return o.elems[0].value
	}
	v, _ := o.Get(key)
	return v
}

// Set replaces the value of a key, or appends it.
func (o *Options) Set(key, value string) {
	if o.json != nil {
		switch o.json[key].(type) {
		case bool:
			o.json[key] = value == "on" || value == "true" || value == "yes"
		case json.Number:
			o.json[key] = json.Number(value)
		default:
			o.json[key] = value
		}
		return
	}
	o.Delete(key)
	// A comma at the end would double with the one to come.
	for n := len(o.elems); n > 0 && o.elems[n-1] == (element{}); n-- {
		o.elems = o.elems[:n-1]
	}
	o.elems = append(o.elems, element{key: key, value: value, keyed: true})
}

// setKind replaces the first, bare value or what stands for it.
func (o *Options) setKind(key, value string) {
	if len(o.elems) > 0 && !o.elems[0].keyed && o.json == nil {
		o.elems[0].value = value
		return
	}
	o.Set(key, value)
}

// Delete removes every mention of a key but the first, bare value.
func (o *Options) Delete(key string) {
	if o.json != nil {
		delete(o.json, key)
		return
	}
	kept := o.elems[:0:0]
	for i, e := range o.elems {
		if e.keyed && e.key == key || !e.keyed && i > 0 && e.value == key {
			continue
		}
		kept = append(kept, e)
	}
	o.elems = kept
}

// mapValues replaces every value by f(key, value); the key of a bare first value
// is "", and a JSON object is walked to its leaves.
func (o *Options) mapValues(f func(key, value string) string) {
	if o.json != nil {
		mapJSON(o.json, f)
		return
	}
	for i := range o.elems {
		o.elems[i].value = f(o.elems[i].key, o.elems[i].value)
	}
}

func mapJSON(v any, f func(key, value string) string) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if s, ok := e.(string); ok {
				v[k] = f(k, s)
			} else {
				mapJSON(e, f)
			}
		}
	case []any:
		for i, e := range v {
			if s, ok := e.(string); ok {
				v[i] = f("", s)
			} else {
				mapJSON(e, f)
			}
		}
	}
}

// each calls f with every key and value.
func (o Options) each(f func(key, value string)) {
	o.mapValues(func(k, v string) string { f(k, v); return v })
}
