#include "textflag.h"

// func writeBack(addr uint64)
//
// One instruction, so that the page is touched by a write and nothing before it:
// compiled code would load first, for a nil check or the race detector.
TEXT ·writeBack(SB), NOSPLIT, $0-8
	MOVQ addr+0(FP), AX
	LOCK
	ORQ  $0, (AX)
	RET
