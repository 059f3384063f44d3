package guestapi

import (
	"net/netip"
	"strings"
	"testing"
)

func TestCmdlineRoundTrip(t *testing.T) {
	want := Config{
		IP: netip.MustParsePrefix("10.77.0.9/24"), Gateway: netip.MustParseAddr("10.77.0.1"),
		Port: 8080, WorkingSetMiB: 32, ChurnRate: -1, Incompressible: 0.25, Touch: true,
	}
	want.ZipfExponent, want.Sessions, want.Scale, want.TLSPort = 1.1, 50, 0.05, 443
	for _, load := range append(Loads(), "") {
		want.Load = load
		if strings.HasPrefix(load, SPECwebPrefix) {
			want.Sessions, want.Scale, want.TLSPort, want.Front = 70, 0.125, 8443, FrontNginx
		}
		if got, err := ParseCmdline(want.Cmdline()); load != "" && (err != nil || got != want) {
			t.Errorf("load %q: got %+v, %v, want %+v", load, got, err, want)
		}
	}
	want.Sessions, want.Scale, want.TLSPort, want.Front = 50, 0.05, 443, ""
	got, err := ParseCmdline("BOOT_IMAGE=/x quiet " + want.Cmdline() + " root=/dev/vda")
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestParseCmdlineErrors(t *testing.T) {
	for _, tc := range []struct{ cmdline, want string }{
		{"quiet", "pw.ip is missing"},
		{"pw.ip=10.77.0.9", "pw.ip=10.77.0.9"},
		{"pw.ip=10.77.0.9/24 pw.wsmib=3", "pw.wsmib=3: unknown"},
		{"pw.ip=10.77.0.9/24 pw.port=0", "not a TCP port"},
		{"pw.ip=10.77.0.9/24 pw.ws_mib=0", "pw.ws_mib=0"},
		{"pw.ip=10.77.0.9/24 pw.half=1.5", "share from 0 to 1"},
		{"pw.ip=10.77.0.9/24 pw.half=NaN", "share from 0 to 1"},
		{"pw.ip=10.77.0.9/24 pw.load=specweb", "want one of random"},
		{"pw.ip=10.77.0.9/24 pw.load=zipf pw.zipf=1", "exponent above 1"},
		{"pw.ip=10.77.0.9/24 pw.sessions=0", "pw.sessions=0"},
		{"pw.ip=10.77.0.9/24 pw.scale=NaN", "pw.scale=NaN"},
		{"pw.ip=10.77.0.9/24 pw.tls_port=80", "other than pw.port"},
		{"pw.ip=10.77.0.9/24 pw.front=apache", "want nginx"},
	} {
		_, err := ParseCmdline(tc.cmdline)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("ParseCmdline(%q): error %v, want one with %q", tc.cmdline, err, tc.want)
		}
	}
}
