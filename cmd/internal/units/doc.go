// Package units reads and writes the quantities an operator types: transfer
// rates and byte sizes.
//
// Rates are written as network people write them: a number, an SI prefix and,
// unless stated otherwise, bits per second, so that "2G" is 2 Gbit/s, a fifth of
// a 10 Gbit/s link. Bytes are accepted where the B is written: "250MB/s" is the
// same rate as "2G". Inside the program rates are always bytes per second.
package units
