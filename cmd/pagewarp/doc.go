// Command pagewarp is the operator's command: it adopts virtual machines,
// relocates them and shows what goes on, as a client of the host's pagewarpd.
//
// Commands that live in files of their own are entered in extra from an init
// function; root.go adds them.
package main
