package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"

	"github.com/pagewarp/pagewarp/relocate/qemu"
)

func TestExampleIsTheDefault(t *testing.T) {
	c, err := Parse("example.toml", Example)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, Default()) {
		t.Errorf("example.toml is not the default:\n%+v\n%+v", c, Default())
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func TestExampleNamesEveryKey(t *testing.T) {
	// The commented template is uncommented, so that its keys are seen too.
	head, template, _ := strings.Cut(Example, "# [templates")
	text := head + "[templates" + strings.ReplaceAll(template, "\n# ", "\n")
	var c Config
	md, err := toml.Decode(text, &c)
	if err != nil {
		t.Fatal(err)
	}
	if u := md.Undecoded(); len(u) > 0 {
		t.Errorf("the example has unknown keys %v", u)
	}
	seen := map[string]bool{}
	for _, k := range md.Keys() {
		for _, part := range k {
			seen[part] = true
		}
	}
	var walk func(reflect.Type)
	walk = func(ty reflect.Type) {
		for f := range ty.Fields() {
			key, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
			if key == "" {
				t.Errorf("%s.%s has no toml key", ty.Name(), f.Name)
			}
			if !seen[key] {
				t.Errorf("example.toml does not document %q", key)
			}
			ft := f.Type
			if k := ft.Kind(); k == reflect.Map || k == reflect.Slice {
				ft = ft.Elem()
			}
			if ft.Kind() == reflect.Struct {
				walk(ft)
			}
		}
	}
	walk(reflect.TypeFor[Config]())
	if c.Template("web1").Set["netdev.net0.ifname"] != "tap7" {
		t.Errorf("template example read as %+v", c.Templates)
	}
}

func TestEncodeReadsBack(t *testing.T) {
	c := Default()
	c.Relocate.Bandwidth = 250_000_000
	c.Templates = map[string]qemu.Template{"web1": {Binary: "/q", Set: map[string]string{"a.b": "c"}}}
	text, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Parse("x", text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if back.Relocate != c.Relocate || !reflect.DeepEqual(back.Template("web1"), c.Template("web1")) {
		t.Errorf("read back as %+v", back)
	}
}

func TestUnknownKeys(t *testing.T) {
	text := "state_dir = \"/x\"\n\n[log]\nlevel = \"info\"\nlevl = \"debug\"\n[tls]\n\n[templates.\"web.1\"]\nbinray = \"/x\"\n[metric]\nlisten=\"\"\nrelocate.bandwith=\"2G\"\n"
	_, err := Parse("p.toml", text)
	if err == nil {
		t.Fatal("passed")
	}
	for _, want := range []string{`p.toml:5: unknown key "log.levl"`, `p.toml:9: unknown key "templates.\"web.1\".binray"`, `p.toml:10: unknown key "metric"`, "--example"} {
		if !strings.Contains(strings.ReplaceAll(err.Error(), `\\`, `\`), want) {
			t.Errorf("no %s in\n%v", want, err)
		}
	}
}

// TestUnknownKeysSayWhatWasMeant: what is close to a key is taken for a typing error, and an
// unknown table is said once.
func TestUnknownKeysSayWhatWasMeant(t *testing.T) {
	for text, want := range map[string]string{
		"listn = []":                           "did you mean listen?",
		"[relocat]\nbandwidth = '2G'":          "did you mean relocate?",
		"[log]\nlevl = 'info'":                 "did you mean log.level?",
		"[templates.web1]\nbinray = '/x'":      "did you mean templates.NAME.binary?",
		"host_bandwith = '2G'":                 "did you mean relocate.host_bandwidth?",
		"[rdma]\npolicy = 'ask'\nbudgte = '1'": "did you mean rdma.budget?",
		"zzz = 1":                              "`pagewarpd config --example`",
	} {
		_, err := Parse("p.toml", text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), "unknown key") != 1 || strings.Contains(text, "zzz") && strings.Contains(err.Error(), "mean") {
			t.Errorf("%q: %v, want %q once", text, err, want)
		}
	}
}

func TestParseErrorsNameTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"a = \n":                        "p.toml:1",
		"\nlisten = 3\n":                "listen",
		"[relocate]\nbandwidth = \"2\"": `did you mean 2M or 2G?`,
		"shutdown_timeout = \"soon\"":   "shutdown_timeout",
		"[engine]\nspin = 5\n":          `p.toml:2: key "engine.spin": duration "5": write a number and a unit`,
	} {
		if _, err := Parse("p.toml", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		text, want string // want "" is valid
	}{
		{"", ""},
		{`listen = ["127.0.0.1:7070", "[::1]:7070", "localhost:1", "unix:/run/x.sock"]`, ""},
		{`listen = ["0.0.0.0:7070"]`, "pagewarp pki init"},
		{`listen = [":7070"]`, "--insecure"},
		{`listen = ["hostA:7070"]`, "no certificates"},
		{"insecure = true", ""},
		{"insecure = true\nlisten = [\"hostA:7070\"]", ""},
		{"insecure = true\n[tls]\nca='/a'\ncert='/b'\nkey='/c'", "exclude each other"},
		{"[tls]\nca='/a'\ncert='/b'\nkey='/c'", ""},
		{"[tls]\nca='/a'", "tls.cert is missing"},
		{"[tls]\npeers=['hostA']", "protects nothing"},
		{`listen = ["7070"]`, "write host:port"},
		{`listen = ["127.0.0.1:x"]`, "not a number"},
		{`listen = ["unix:rel"]`, "absolute"},
		{`state_dir = "run"`, "absolute path"},
		{`state_dir = "/` + strings.Repeat("x", 120) + `"`, "unix socket"},
		{"[log]\nlevel='loud'", "choose debug"},
		{"[log]\nformat='xml'", "choose auto"},
		{"[relocate]\ncodec='lz4'", "auto, none, s2, zstd"},
		{"[relocate]\nhost_bandwidth='800K'", "8M or more"},
		{"[relocate]\nhost_bandwidth='8M'", ""},
		{"[relocate]\ndemand_channels=1000", "0 (automatic) to 64"},
		{"[engine]\nspin='-1s'", "must not be negative"},
		{"[engine]\ndemand_pace='11ms'", "engine.demand_pace"},
		{"[engine]\nreserve='21s'", "engine.reserve"},
		{"[engine]\nawake='11m'", "engine.awake"},
		{"[engine]\nawake='-1ms'", "engine.awake"},
		{"[engine]\nawake='0s'\nreserve='0s'\ndemand_pace='0s'", ""},
		{"shutdown_timeout='0s'", "positive"},
		{"[metrics]\nlisten='x'", "metrics.listen"},
		{"[templates.'a/b']", "no machine name"},
		{"[templates.a]\nbinary='qemu'", "absolute path"},
	} {
		cfg, err := Parse("t", c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		err = cfg.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
	}
}

func TestClear(t *testing.T) {
	c := Default()
	for to, ok := range map[string]bool{"hostB:7070": false, "10.0.0.1:7070": false, "127.0.0.1:7070": true, "unix:/x": true, "[::1]:1": true} {
		if err := c.Clear(to); (err == nil) != ok {
			t.Errorf("Clear(%s): %v", to, err)
		}
	}
	c.Insecure = true
	if err := c.Clear("hostB:7070"); err != nil {
		t.Error(err)
	}
}

func TestLoadMissing(t *testing.T) {
	p := filepath.Join(t.TempDir(), "none.toml")
	if _, err := Load(p); err == nil || !strings.Contains(err.Error(), "config --example > "+p) {
		t.Error(err)
	}
	if err := os.WriteFile(p, []byte("insecure = true"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(p); err != nil || !c.Insecure {
		t.Error(c, err)
	}
}

func TestValidName(t *testing.T) {
	for s, ok := range map[string]bool{"web1": true, "a.b_c-D": true, "": false, ".": false, "..": false, "a/b": false, "a b": false,
		strings.Repeat("x", 64): true, strings.Repeat("x", 65): false, "ü": false, "a\n": false} {
		if ValidName(s) != ok {
			t.Errorf("ValidName(%q) = %v", s, !ok)
		}
	}
}
