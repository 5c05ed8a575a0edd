package main

import (
	"os"
	"runtime"
)

// ballast is memory that is reserved and never touched, so that it takes up no page. The collector waits until as much
// garbage has gathered as there is live memory; a proxy has little of that, and would collect many times a second. With
// it there is a collection every 30 MB or so, and no more memory in use than that where the policies are large.
var ballast []byte

const ballastSize = 24 << 20

// reserve makes the ballast, unless the operator has told the collector what to do.
func reserve() {
	runtime.MemProfileRate = 0 // there is no way to ask for the profile, and it samples every allocation's stack
	for _, name := range []string{"GOGC", "GOMEMLIMIT"} {
		if _, told := os.LookupEnv(name); told {
			return
		}
	}
	if ballast == nil {
		ballast = make([]byte, ballastSize)
	}
}
