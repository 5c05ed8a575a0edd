package identity

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// The cache is bounded by the memory that it comes to hold, and by how many tokens that is. A token of a kilobyte weighs
// about six, so the weight is what ends it first, at some 11,000.
const (
	maxCachedBytes  = 64 << 20
	maxCachedTokens = 1 << 16
)

// identityBytes is what an identity weighs beside its token and claims: itself, its place here, and what policy and
// signer derive from it.
const identityBytes = 1536

// weight is about how much memory an identity holds.
func (i *Identity) weight() int {
	// Twice: what is derived from the identity may hold its claims once more, in another form; and in text, too, for the
	// audit log, where most is said once or not at all, and little more than once.
	return identityBytes + 2*len(i.token) + 2*weigh(i.Claims)
}

// weigh is about how much memory decoded JSON takes. It may be a dozen times its text: "[[],[]]".
func weigh(x any) int {
	const word = 8
	switch x := x.(type) {
	case string:
		return 2*word + len(x)
	case json.Number:
		return 2*word + len(x)
	case []any:
		n := 3*word + 2*word*len(x)
		for _, member := range x {
			n += weigh(member)
		}
		return n
	case map[string]any:
		n := 6*word + 5*word*len(x) // names are shared with other tokens, as far as they are alike
		for name, member := range x {
			n += len(name)/4 + weigh(member)
		}
		return n
	}
	return 0
}

// verified is a token that held, and what that rests on.
type verified struct {
	identity *Identity
	until    int64 // Unix nanoseconds: expiry and leeway
	set      *keySet
	key      *key
	keys     atomic.Pointer[keys] // in which key was last seen
	weight   int                  // in bytes
}

// holds tells whether what was true when the token was verified still is: the time, and that the issuer still
// publishes the key.
func (v *verified) holds(now time.Time) bool {
	if now.UnixNano() >= v.until {
		return false
	}
	current := v.set.current.Load()
	if current == v.keys.Load() {
		return true
	}
	if !current.holds(v.key) {
		return false
	}
	v.keys.Store(current)
	return true
}

// tokenCache keeps verified tokens, the least recently used going first. Only what verified is kept, so that nobody
// without a token can push others out.
//
// The key is a hash, under a secret seed, of the signature's end, and the token found is compared whole: no token is
// ever taken for another, no dump of keys shows one, and a hit costs a fifth of what the SHA-256 of a token would.
type tokenCache struct {
	seed maphash.Seed

	mu      sync.Mutex // guards all below
	tokens  *simplelru.LRU[uint64, *verified]
	bytes   int
	flights map[[sha256.Size]byte]*verification
}

// verification is one under way, for all who came with the same token meanwhile.
type verification struct {
	done   chan struct{}
	result *verified
	err    error
}

func newTokenCache() *tokenCache {
	c := &tokenCache{seed: maphash.MakeSeed(), flights: map[[sha256.Size]byte]*verification{}}
	var err error
	c.tokens, err = simplelru.NewLRU(maxCachedTokens, func(_ uint64, v *verified) { c.bytes -= v.weight })
	if err != nil {
		panic(err) // only for a size below 1
	}
	return c
}

// hash is different for the tokens of an issuer, whose signatures are. A token that somebody makes to have the hash of
// another finds it, is unlike it, and is verified like any that was not found.
func (c *tokenCache) hash(raw string) uint64 {
	return maphash.String(c.seed, raw[max(0, len(raw)-64):])
}

// get returns the identity of a token that was verified before and still holds, or nil.
func (c *tokenCache) get(raw string, now time.Time) *Identity {
	hash := c.hash(raw)
	c.mu.Lock()
	v, ok := c.tokens.Get(hash)
	c.mu.Unlock()
	if !ok || v.identity.token != raw || !v.holds(now) {
		return nil
	}
	return v.identity
}

// once verifies a token, one at a time for each.
func (c *tokenCache) once(ctx context.Context, raw string, verify func(context.Context) (*verified, error)) (*Identity, error) {
	digest := sha256.Sum256([]byte(raw))
	c.mu.Lock()
	flight, joined := c.flights[digest]
	if !joined {
		flight = &verification{
			done: make(chan struct{}),
			err:  &Error{Kind: Unavailable, Message: "the token could not be verified: try again"}, // where verify panics
		}
		c.flights[digest] = flight
	}
	c.mu.Unlock()

	if joined {
		select {
		case <-flight.done:
		case <-ctx.Done():
			return nil, &Error{Kind: Unavailable, Message: "the request ended while its token was verified", Err: ctx.Err()}
		}
	} else {
		func() {
			defer func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				delete(c.flights, digest)
				if flight.err == nil {
					c.addLocked(raw, flight.result)
				}
				close(flight.done)
			}()
			// Not cut short when this request is: others wait for the same answer.
			flight.result, flight.err = verify(context.WithoutCancel(ctx))
		}()
	}
	if flight.err != nil {
		return nil, flight.err
	}
	return flight.result.identity, nil
}

func (c *tokenCache) addLocked(raw string, v *verified) {
	hash := c.hash(raw)
	c.tokens.Remove(hash) // or else replacing it would count twice
	c.tokens.Add(hash, v)
	c.bytes += v.weight
	for c.bytes > maxCachedBytes {
		c.tokens.RemoveOldest()
	}
}
