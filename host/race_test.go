//go:build race

package host_test

// thin is how many cases of the long suites of faults one is run of: under the
// race detector, which makes them ten times as long, every eleventh: the rest of
// a case goes by its number, in twos and threes.
const thin = 11
