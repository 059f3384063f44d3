module github.com/pagewarp/pagewarp/bench/peers/userfaultfd-go

go 1.26

require github.com/loopholelabs/userfaultfd-go v0.1.2

require golang.org/x/sys v0.21.0 // indirect
