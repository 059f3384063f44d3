package server

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	Main() // the tests start this binary as the server and the back end
	if os.Getenv(EnvTask) != "" {
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}
