package audit

import (
	"math/rand/v2"
	"strings"
	"time"
)

// crockford is the alphabet of ULIDs: no I, L, O, U.
const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// newID is a ULID: 48 bits of time, so that ids sort by it, and 80 random ones. The runtime's generator is seeded
// by the system and strong (ChaCha8): an id is no secret, but it cannot be guessed beforehand.
func newID(now time.Time) string {
	ms := uint64(now.UnixMilli())
	hi, lo := rand.Uint64(), rand.Uint64()
	var id [26]byte
	for i := 9; i >= 0; i-- {
		id[i] = crockford[ms&31]
		ms >>= 5
	}
	for i := 17; i >= 10; i-- {
		id[i] = crockford[hi&31]
		hi >>= 5
	}
	for i := 25; i >= 18; i-- {
		id[i] = crockford[lo&31]
		lo >>= 5
	}
	return string(id[:])
}

// idTime is when the id was made; false where it is no id of ours.
func idTime(id string) (time.Time, bool) {
	if len(id) != 26 {
		return time.Time{}, false
	}
	var ms int64
	for i := range len(id) {
		v := strings.IndexByte(crockford, id[i])
		if v < 0 {
			return time.Time{}, false
		}
		if i < 10 {
			ms = ms<<5 | int64(v)
		}
	}
	return time.UnixMilli(ms), true
}
