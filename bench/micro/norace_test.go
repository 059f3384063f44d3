//go:build !race

package micro

const underRace = false
