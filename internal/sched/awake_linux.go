package sched

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// latencyDevice holds the CPUs' exit latency down for as long as it is open
// (Documentation/power/pm_qos_interface.rst).
const latencyDevice = "/dev/cpu_dma_latency"

// shallow is the exit latency that Awake allows on hardware: that of C1, 1 to 2 µs on x86;
// the states below it take from 10 to over 100 µs to leave.
const shallow = 2 * time.Microsecond

// Awake keeps all CPUs of the host out of sleep states that take long to leave, until what
// it returns is closed. A page that is fetched passes four threads that sleep; where their
// CPUs do, too, each takes as long to wake as a small round trip. In a virtual machine whose
// kernel uses the driver haltpoll no state but polling is quick, since a halted virtual CPU
// goes back to the hypervisor: there idle CPUs poll. It needs the right to open
// /dev/cpu_dma_latency.
func Awake() (io.Closer, error) {
	latency := shallow
	if driver, err := os.ReadFile("/sys/devices/system/cpu/cpuidle/current_driver"); err == nil && strings.TrimSpace(string(driver)) == "haltpoll" {
		latency = 0
	}
	return awake(latencyDevice, latency)
}

// awake asks the device at path for an exit latency, in whole µs.
func awake(path string, latency time.Duration) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("keep the CPUs awake: %w", err)
	}
	if _, err := f.Write(binary.NativeEndian.AppendUint32(nil, uint32(latency.Microseconds()))); err != nil {
		f.Close()
		return nil, fmt.Errorf("keep the CPUs awake: %w", err)
	}
	return f, nil
}
