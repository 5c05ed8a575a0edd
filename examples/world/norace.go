//go:build !race

package world

// raceFlag builds the proxy as this program was built.
const raceFlag = "-race=false"
