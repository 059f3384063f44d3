//go:build race

package micro

// underRace: sync.Pool, which holds the encoders, drops a quarter of what it is
// given on purpose, so that codecs allocate.
const underRace = true
