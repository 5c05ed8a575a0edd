package identity

import (
	"fmt"
	"testing"
)

// What is kept open is bounded by its size, whatever the number, and counted once.
func TestOpenSessionsAreBounded(t *testing.T) {
	o := newOpenSessions()
	first := &session{token: "0", size: maxOpenBytes / 8}
	o.add(first)
	if again := o.add(&session{token: "0", size: maxOpenBytes / 8}); again != first {
		t.Error("two requests that opened a session at once have two")
	}
	for i := 1; i < 20; i++ {
		o.add(&session{token: fmt.Sprint(i), size: maxOpenBytes / 8})
		if o.bytes > maxOpenBytes || o.bytes != o.lru.Len()*(maxOpenBytes/8) {
			t.Fatalf("%d sessions count as %d bytes", o.lru.Len(), o.bytes)
		}
	}
	if o.get("0") != nil || o.get("19") == nil {
		t.Error("not the least recently used went")
	}
	// Should two tokens have one hash, neither is taken for the other.
	o.lru.Purge()
	one, two := &session{token: "one", size: 100}, &session{token: "two", size: 200}
	o.add(one)
	for _, hash := range o.lru.Keys() {
		one.token = "three"
		if o.get("one") != nil {
			t.Error("a session is found by its hash alone")
		}
		o.lru.Remove(hash)
	}
	o.add(two)
	if o.bytes != 200 || o.get("two") != two {
		t.Errorf("%d bytes", o.bytes)
	}
}
