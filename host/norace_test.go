//go:build !race

package host_test

// thin is how many cases of the long suites of faults one is run of: all.
const thin = 1
