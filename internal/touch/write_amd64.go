package touch

// writeBack writes the word at addr back unchanged, atomically.
//
//go:noescape
func writeBack(addr uint64)
