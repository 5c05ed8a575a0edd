package proxy

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/sluice-s3/sluice/audit"
)

// However the text comes, what is not a secret passes byte for byte, and of what is nothing more than its beginning does.
func TestScreen(t *testing.T) {
	const signature, token = "0123456789abcdef0123456789abcdef", "FwoG/short+AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB/end=="
	c := &call{event: new(audit.Event)}
	c.room.out.Header = http.Header{"Authorization": {"AWS4 Signature=" + signature}, "X-Amz-Security-Token": {token}}
	for text, leaks := range map[string]bool{
		"":                                     false,
		"nothing":                              false,
		signature[:31]:                         false,
		signature[:31] + signature[:31]:        false,
		signature[:16] + signature:             true,
		strings.Repeat("0", 300) + signature:   true,
		strings.Repeat(signature[:31], 20):     false,
		strings.ReplaceAll(token, "/", `\/`):   true,
		strings.ReplaceAll(token, "+", `%2B`):  true,
		"x" + strings.Repeat("A", 40) + "x":    false,
		strings.Repeat("A", 300) + "B":         true, // what of the token is looked for
		strings.Repeat("A", 300):               false,
		"<Error><Code>SlowDown</Code></Error>": false,
	} {
		for name, from := range map[string]io.Reader{
			"whole": strings.NewReader(text), "by bytes": iotest.OneByteReader(strings.NewReader(text)),
			"by halves": iotest.HalfReader(strings.NewReader(text)), "with its end": iotest.DataErrReader(strings.NewReader(text)),
		} {
			var got strings.Builder
			_, err := io.CopyBuffer(&got, struct{ io.Reader }{&screen{call: c, from: from}}, make([]byte, longestSecret+1))
			if (err != nil) != leaks || !leaks && got.String() != text || leaks && strings.Contains(got.String(), signature) {
				t.Errorf("%s, %s: %q, %v", text, name, got.String(), err)
			}
		}
	}
}
