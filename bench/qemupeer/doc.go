// Package qemupeer compares pagewarp with QEMU's own postcopy: the same guest,
// the same link, one run, the two alternated. The guest touches random pages of
// its memory and counts the touches in bins of 100 ms, so what the relocation
// did to it is told by the guest itself. It is bench/engine with two engines, and
// a verdict.
package qemupeer
