package identity

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	strictjson "github.com/go-jose/go-jose/v4/json"
)

// FuzzDecodeClaims holds the claims to what encoding/json reads, and to what go-jose refuses.
func FuzzDecodeClaims(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"a":1}`, `{"a":1,"a":2}`, `{"a":{"b":[1,2.50,1e3,-0,"x",null,true]}}`, `{"a":1}{}`, `{"a":1} `, `[]`, `null`, `1`, ``, `{"a"}`,
		"{\"a\":\"\\ud800\"}", "{\"a\":\"\xff\"}", "{\"\xff\":1,\"\xfe\":2}", `{"a":[{"b":1},{"b":1}],"c":[{"b":1,"b":2}]}`, `{"a":1}x`, `{"a":123456789012345678901234567890}`,
		`{"\u0061":1,"a":2}`, `{"A":1,"a":2}`, `{"":1}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		have, err := decodeClaims(payload)
		var unique any
		var want map[string]any
		decoder := json.NewDecoder(bytes.NewReader(payload))
		decoder.UseNumber()
		refused := strictjson.Unmarshal(payload, &unique) != nil || decoder.Decode(&want) != nil || want == nil
		if refused != (err != nil) || err == nil && !reflect.DeepEqual(have, want) {
			t.Errorf("%q: have %v, %v, want %v, refused %t", payload, have, err, want, refused)
		}
	})
}

// TestClaimsDepth: what reads claims recurses.
func TestClaimsDepth(t *testing.T) {
	if _, err := decodeClaims([]byte(`{"a":` + strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001) + `}`)); err == nil {
		t.Error("accepted")
	}
}

// TestTokensAreBounded: by what they hold, which may be much more than their text, and by their number.
func TestTokensAreBounded(t *testing.T) {
	c := newTokenCache()
	add := func(n int, weight int) {
		token := strings.Repeat("x", 64) + string(rune('a'+n%26)) + strings.Repeat("y", n/26)
		c.addLocked(token, &verified{identity: &Identity{token: token}, weight: weight})
	}
	for n := range 40 {
		add(n, maxCachedBytes/8)
		if c.bytes > maxCachedBytes || c.bytes != c.tokens.Len()*(maxCachedBytes/8) {
			t.Fatalf("%d tokens count as %d bytes", c.tokens.Len(), c.bytes)
		}
	}
	add(39, maxCachedBytes/8)
	if c.tokens.Len() != 8 || c.bytes != maxCachedBytes {
		t.Errorf("one token twice: %d count as %d bytes", c.tokens.Len(), c.bytes)
	}
	small := &Identity{Claims: map[string]any{"a": "b"}}
	large, err := decodeClaims([]byte(`{"a":[` + strings.Repeat("[],", 4000) + `{}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if have, least := weigh(large), 4000*(16+24); have < least || small.weight() > 2*identityBytes {
		t.Errorf("12 KB of empty lists weigh %d, want at least %d; one claim weighs %d", have, least, small.weight())
	}
}
