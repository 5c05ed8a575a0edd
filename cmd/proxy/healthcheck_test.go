package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHealthcheck(t *testing.T) {
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" {
			w.WriteHeader(http.StatusServiceUnavailable)
			w.Write([]byte(`{"ready":false}`))
		}
	}))
	defer admin.Close()
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"healthcheck", "--admin", admin.URL}, 0, ""},
		{[]string{"healthcheck", "--admin", admin.URL + "/", "--ready"}, exitFailed, `{"ready":false}`},
		{[]string{"healthcheck", "--admin", "http://127.0.0.1:1"}, exitFailed, "refused; if admin.address is another than http://127.0.0.1:1, name it by --admin"},
		{[]string{"healthcheck", "--now"}, exitMisuse, "--now"},
	} {
		var out, errs bytes.Buffer
		if got := run(c.args, &out, &errs); got != c.status || !strings.Contains(errs.String(), c.says) {
			t.Errorf("%q: status %d, %s", c.args, got, errs.String())
		}
	}
}
