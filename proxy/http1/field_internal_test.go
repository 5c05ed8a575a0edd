package http1

import "testing"

// FuzzPlain holds the quick look at a value to the table: it may only ever be the stricter of the two.
func FuzzPlain(f *testing.F) {
	for _, s := range []string{"", "a", "plain value", "tab\there", "12345678", "1234567\x7f", "\x1f2345678", "1234567\xff", "\x00\x01\x02\x03\x04\x05\x06\x07", "~~~~~~~~ ", "        "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if plain(s) && !all(s, isValue) {
			t.Errorf("%q is taken for plain", s)
		}
		ascii := true
		for i := range len(s) {
			ascii = ascii && s[i] >= ' ' && s[i] <= '~'
		}
		if ascii != plain(s) {
			t.Errorf("plain(%q) = %v", s, !ascii)
		}
	})
}
