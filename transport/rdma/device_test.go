package rdma

import "testing"

// Events of a device are those of all its ports: one that goes down, or comes up, is of
// concern to those alone who use it. A device that is broken is not mended by a port.
func TestEventsOfPorts(t *testing.T) {
	d := &Device{port: Port{Device: "mlx4_0", Number: 2}, watch: make(map[int]func(error))}
	told := 0
	if _, err := d.onFailure(func(error) { told++ }); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		text   string
		port   int
		told   int
		failed bool
	}{
		{portError, 1, 0, false}, {"port active", 1, 0, false}, {"QP last WQE reached", 0, 0, false},
		{portError, 2, 1, true}, {"port active", 1, 1, true}, {"port active", 2, 1, false},
		{catastrophe, 0, 2, true}, {"port active", 2, 2, true}, {portError, 2, 2, true}, {"port active", 2, 2, true},
	} {
		d.heard(x.text, x.port)
		_, err := d.onFailure(func(error) {})
		if told != x.told || (err != nil) != x.failed {
			t.Errorf("%q of port %d: told %d times of a failure, out of use: %v", x.text, x.port, told, err)
		}
	}
}
