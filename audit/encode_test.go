package audit

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func fullEvent() Event {
	return Event{
		ID: "01KAQ2J4Q0ABCDEFGHJKMNPQRS", Time: time.Date(2026, 11, 23, 0, 0, 0, 123456000, time.UTC), DurationMS: 12.4,
		Identity: Identity{
			Issuer: "https://app.gitpod.io", Subject: "user:1/env:2", Session: "env-42", Method: "bearer",
			Attributes: Attributes{Workspace: "env-42", Project: "web", Repository: "acme/web", User: "dev@acme.com", Groups: []string{"a", "b"}},
			Claims:     map[string]any{"email": "dev@acme.com", "org": map[string]any{"id": json.Number("7"), "x": []any{true, nil, "<&>"}}},
		},
		SourceIP: "10.1.2.3", UserAgent: "aws-cli/2.0 \"x\" <b>&", Host: "s3.example.com",
		Operation: "CopyObject", Bucket: "artifacts", Key: "acme/wéb/build\u2028\x01\t\\.tgz", VersionID: "v1",
		Accesses: []Access{
			{Action: "s3:GetObject", Bucket: "artifacts", Key: "acme/web/build.tgz", VersionID: "3", Allow: true},
			{Action: "s3:ListBucket", Bucket: "artifacts", Prefix: "a/", Delimiter: "/"},
		},
		Decision: Decision{Allow: true, Reasons: []string{"r1", "r2"}, Role: "arn:aws:iam::123456789012:role/x", PolicyRevision: "abc",
			Shadow: json.RawMessage(`{"allow":false,"differs":true}`)},
		Backend: Backend{Name: "aws", Status: 200, RequestID: "R"},
		Status:  200, Error: "", Outcome: Completed, BytesIn: 1, BytesOut: 2048, TraceID: "4bf92f3577b34da6a3ce929d0e0e4736",
	}
}

func line(c Config, ev Event) string {
	body := newEncoder(c).append(nil, &ev)
	return string(appendLine(nil, ev.Seq, body, ev.Prev))
}

// marshal is encoding/json without escaping for HTML, and with lists where there is nothing.
func marshal(t *testing.T, ev Event) string {
	t.Helper()
	ev.Schema = Schema
	if ev.Accesses == nil {
		ev.Accesses = []Access{}
	}
	if ev.Decision.Reasons == nil {
		ev.Decision.Reasons = []string{}
	}
	if ev.Identity.Claims == nil {
		ev.Identity.Claims = map[string]any{}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(ev); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestLinesAreWhatEncodingJSONWouldWrite(t *testing.T) {
	invalid := fullEvent()
	invalid.Key, invalid.UserAgent = "a\xffb\xc3", "\x00\x1f\x7f\u2029💥"
	bare := Event{Time: time.Date(2026, 1, 2, 3, 4, 5, 999999000, time.FixedZone("", 3600)).UTC(), DurationMS: 0.001}
	for name, ev := range map[string]Event{"full": fullEvent(), "bare": bare, "invalid": invalid} {
		t.Run(name, func(t *testing.T) {
			ev.Seq, ev.Prev = 812, noPrev
			got := line(Config{Claims: []string{"email", "org"}}, ev)
			if diff := cmp.Diff(marshal(t, ev), got); diff != "" {
				t.Error(diff)
			}
			if seq, prev, ok := lineSeq([]byte(strings.TrimSuffix(got, "\n"))); !ok || seq != 812 || string(prev) != noPrev {
				t.Errorf("lineSeq: %d %s %v", seq, prev, ok)
			}
		})
	}
}

func TestTimesHaveMicroseconds(t *testing.T) {
	ev := Event{Time: time.Date(2026, 11, 23, 1, 0, 0, 0, time.FixedZone("CET", 3600))}
	if got := line(Config{}, ev); !strings.Contains(got, `"time":"2026-11-23T00:00:00.000000Z"`) {
		t.Error(got)
	}
}

func FuzzStringsAreWhatEncodingJSONWouldWrite(f *testing.F) {
	f.Add("a\"\\\x00\u2028\xff<>&💥")
	f.Fuzz(func(t *testing.T, s string) { mustEncode(t, s) })
}

func mustEncode(t *testing.T, s string) {
	t.Helper()
	if len(s) > maxField {
		return
	}
	var want bytes.Buffer
	e := json.NewEncoder(&want)
	e.SetEscapeHTML(false)
	e.Encode(s)
	for _, room := range []int{0, len(s), len(s) + 1, len(s) + 2, 8 * maxField} {
		if got := string(appendString(make([]byte, 0, room), s)) + "\n"; got != want.String() {
			t.Errorf("%q: %s, want %s", s, got, want.String())
		}
	}
}

// Strings are looked at by eight bytes at a time.
func TestEveryByteInEveryPlaceOfAString(t *testing.T) {
	for c := range 256 {
		for at := range 20 {
			for _, with := range []string{"a", "\x7f", " ", "\xff", "\""} {
				s := strings.Repeat(with, at) + string([]byte{byte(c)}) + strings.Repeat("b", 19-at)
				mustEncode(t, s)
			}
		}
	}
}

func TestLongFieldsAreCut(t *testing.T) {
	ev := Event{UserAgent: strings.Repeat("é", 600), Key: strings.Repeat("k", 1024), Error: strings.Repeat("e", 3000)}
	var back Event
	if err := json.Unmarshal([]byte(line(Config{}, ev)), &back); err != nil {
		t.Fatal(err)
	}
	if back.UserAgent != strings.Repeat("é", 512)+"…" {
		t.Errorf("user agent: %d bytes", len(back.UserAgent))
	}
	if back.Key != ev.Key {
		t.Errorf("a key as long as S3 allows was cut")
	}
	if back.Error != strings.Repeat("e", 2048)+"…" {
		t.Errorf("error: %d bytes", len(back.Error))
	}
}

func TestClaims(t *testing.T) {
	claims := map[string]any{
		"email": "dev@acme.com", "secret": "x", "a/b": "slash",
		"kubernetes.io": map[string]any{"namespace": "ci", "pod": map[string]any{"name": "p", "uid": "u"}},
	}
	for name, tc := range map[string]struct {
		config []string
		want   string
	}{
		"none by default":    {nil, `{}`},
		"named":              {[]string{"email"}, `{"email":"dev@acme.com"}`},
		"absent":             {[]string{"nobody", "/kubernetes.io/nothing"}, `{"kubernetes.io":{}}`},
		"pointer":            {[]string{"/kubernetes.io/pod/name", "/kubernetes.io/namespace"}, `{"kubernetes.io":{"namespace":"ci","pod":{"name":"p"}}}`},
		"the whole and part": {[]string{"/kubernetes.io/pod/name", "kubernetes.io"}, `{"kubernetes.io":{"namespace":"ci","pod":{"name":"p","uid":"u"}}}`},
		"escaped":            {[]string{"/a~1b", "email"}, `{"a/b":"slash","email":"dev@acme.com"}`},
		"pointer into text":  {[]string{"/email/x"}, `{}`},
	} {
		t.Run(name, func(t *testing.T) {
			got := string(newEncoder(Config{Claims: tc.config}).appendClaims(nil, claims))
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
	big := map[string]any{"big": []any{strings.Repeat("x", 900), strings.Repeat("x", 900), strings.Repeat("x", 900), strings.Repeat("x", 900), strings.Repeat("x", 900)}}
	if got := string(newEncoder(Config{Claims: []string{"big"}}).appendClaims(nil, big)); got != `{"big":"… (4516 bytes)"}` {
		t.Errorf("a large claim: %s", got)
	}
}

// However an identity was kept before, a line tells what its event's identity and its log's configuration make of it.
func TestAKeptIdentityIsWrittenAsAnyOther(t *testing.T) {
	other := Identity{Issuer: "https://other", Subject: "su\"b", Session: "env-7", Method: "session", Claims: map[string]any{"email": "other@acme.com", "org": "o"}}
	configs := []Config{{}, {Claims: []string{"email"}}, {Claims: []string{"/org/id", "email"}, Redact: Redact{Keys: []string{"*.tgz"}, Drop: []string{"artifacts/a/*"}}}}
	logs := make([]*Log, len(configs))
	for i, c := range configs {
		logs[i] = &Log{encoder: newEncoder(c)}
	}
	for i, c := range configs {
		for _, id := range []Identity{fullEvent().Identity, other, {}} {
			ev := fullEvent()
			ev.Identity = id
			want := line(c, ev)
			for by, log := range logs {
				ev.Identity = log.Keep(id)
				if got := string(appendLine(nil, ev.Seq, logs[i].encoder.append(nil, &ev), ev.Prev)); got != want {
					t.Errorf("configuration %d, kept by %d\n%s, want\n%s", i, by, got, want)
				}
			}
		}
	}
}

// What an event learns after it was journalled is in its line, whatever it is.
func TestALineHasWhatChangedAfterTheJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	log, err := Open(t.Context(), Config{File: &File{Path: path}, Claims: []string{"email"}})
	if err != nil {
		t.Fatal(err)
	}
	var want [][]byte
	request := func(change func(ev *Event)) {
		t.Helper()
		r, err := log.Begin(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		id, begun := r.Event.ID, r.Event.Time
		r.Event = typicalEvent()
		r.Event.ID, r.Event.Time, r.Event.DurationMS = id, begun, float64(len(want)%2)*1e9
		r.Event.Identity = log.Keep(r.Event.Identity)
		if err := r.Journal(); err != nil {
			t.Fatal(err)
		}
		change(&r.Event)
		r.Commit()
		want = append(want, log.encoder.append(nil, &r.Event))
	}
	request(func(ev *Event) {})
	request(func(ev *Event) { ev.DurationMS, ev.Status, ev.BytesOut, ev.TraceID = 12345.678, 206, 1<<40, "" })
	request(func(ev *Event) { ev.DurationMS = -math.MaxFloat64 })
	for digits := range 19 {
		request(func(ev *Event) { ev.DurationMS = -math.Pow10(digits) / 7000 })
	}
	request(func(ev *Event) { ev.Identity = log.Keep(Identity{Subject: "another"}) })
	request(func(ev *Event) { ev.Identity = Identity{Subject: "another"} })
	request(func(ev *Event) { ev.Accesses[0].Allow = false })
	request(func(ev *Event) { ev.Accesses = append(ev.Accesses, Access{Action: "s3:PutObject"}) })
	request(func(ev *Event) { ev.Accesses = nil })
	request(func(ev *Event) { ev.Decision.Reasons = []string{"revoked"} })
	request(func(ev *Event) { ev.Decision.Shadow = json.RawMessage(`{"allow":true}`) })
	// Each text and number for itself.
	for i := 0; ; i++ {
		n := 0
		request(func(ev *Event) {
			n = i
			changeNth(reflect.ValueOf(ev).Elem(), &n)
		})
		if n >= 0 {
			break
		}
	}
	if len(want) < 56 {
		t.Errorf("%d requests: fields were not found", len(want))
	}
	if err := log.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range bytes.Split(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n")) {
		if i >= len(want) || !bytes.Contains(line, append(append([]byte{','}, want[i]...), linePrev...)) {
			t.Errorf("%s\nwant\n%s", line, want[min(i, len(want)-1)])
		}
	}
}

// Nor does what an event learns after it was journalled tell a key that is not to be recorded.
func TestWhatChangedAfterTheJournalIsRedacted(t *testing.T) {
	for name, redact := range map[string]Redact{"hashed": {Keys: []string{"*"}}, "dropped": {Drop: []string{"*"}}} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.jsonl")
			log, err := Open(t.Context(), Config{File: &File{Path: path}, Redact: redact})
			if err != nil {
				t.Fatal(err)
			}
			r, err := log.Begin(time.Now())
			if err != nil {
				t.Fatal(err)
			}
			id, begun := r.Event.ID, r.Event.Time
			r.Event = typicalEvent()
			r.Event.ID, r.Event.Time = id, begun
			r.Event.Identity = log.Keep(r.Event.Identity)
			if err := r.Journal(); err != nil {
				t.Fatal(err)
			}
			key := r.Event.Key
			r.Event.Error = "no such key: " + key
			r.Commit()
			if err := log.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if len(key) < 3 || !bytes.Contains(raw, []byte("no such key: ")) || bytes.Contains(raw, []byte(key)) {
				t.Errorf("%q in %s", key, raw)
			}
		})
	}
}

// changeNth changes the nth text, number or boolean in v; n is negative then.
func changeNth(v reflect.Value, n *int) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			// Commit has the id from Begin, and nothing may be changed of an identity that was kept.
			if f := v.Type().Field(i); !f.IsExported() || v.Type() == reflect.TypeFor[Event]() && (f.Name == "ID" || f.Name == "Identity") {
				continue
			}
			if changeNth(v.Field(i), n); *n < 0 {
				return
			}
		}
		return
	case reflect.Slice:
		for i := range v.Len() {
			if changeNth(v.Index(i), n); *n < 0 {
				return
			}
		}
		return
	case reflect.Map:
		return
	}
	if *n--; *n >= 0 {
		return
	}
	switch {
	case v.Kind() == reflect.String:
		v.SetString(v.String() + "!")
	case v.Kind() == reflect.Bool:
		v.SetBool(!v.Bool())
	case v.CanInt():
		v.SetInt(v.Int() + 1)
	case v.CanUint():
		v.SetUint(v.Uint() + 1)
	case v.CanFloat():
		v.SetFloat(v.Float() + 1)
	}
}

func TestRedactedKeysAppearNowhere(t *testing.T) {
	ev := fullEvent()
	secret := `private/"alice"/x.txt`
	ev.Key = secret
	ev.Accesses = []Access{{Action: "s3:GetObject", Bucket: "artifacts", Key: secret}, {Action: "s3:PutObject", Bucket: "open", Key: "public/a"},
		{Action: "s3:ListBucket", Bucket: "artifacts", Prefix: "private/al"}}
	ev.Error = "refused " + secret
	ev.Decision.Reasons = []string{"no grant on " + secret}
	ev.Decision.Shadow = json.RawMessage(`{"reasons": ["private/\"alice\"/x.txt"]}`)
	got := line(Config{Redact: Redact{Keys: []string{"artifacts/private/*"}}}, ev)
	if strings.Contains(got, "alice") || strings.Contains(got, "private/al") {
		t.Error(got)
	}
	var back Event
	if err := json.Unmarshal([]byte(got), &back); err != nil {
		t.Fatal(err)
	}
	hash := HashKey(secret)
	if back.Key != hash || back.Accesses[0].Key != hash || back.Error != "refused "+hash || back.Accesses[1].Key != "public/a" {
		t.Errorf("%+v", back)
	}
}

func TestDroppedKeys(t *testing.T) {
	ev := Event{Bucket: "vault", Key: "secret", Accesses: []Access{{Bucket: "vault", Key: "secret"}}, Error: "no secret"}
	got := line(Config{Redact: Redact{Keys: []string{"*"}, Drop: []string{"vault/*"}}}, ev)
	if strings.Contains(got, "secret") || strings.Contains(got, HashKey("secret")) || strings.Count(got, "[dropped]") != 3 {
		t.Error(got)
	}
}

func TestPatterns(t *testing.T) {
	for _, tc := range []struct {
		p, s string
		want bool
	}{
		{"*", "", true}, {"*", "a/b", true}, {"a/*", "a/b/c", true}, {"a/*", "b/a/c", false}, {"*.pem", "x/y.pem", true},
		{"*.pem", "x.pem.txt", false}, {"a?c", "abc", true}, {"a?c", "ac", false}, {"*a*b*", "xxaxxbxx", true}, {"abc", "abc", true}, {"", "", true}, {"", "a", false},
	} {
		if got := pattern(tc.p).match(tc.s); got != tc.want {
			t.Errorf("%q against %q: %v", tc.p, tc.s, got)
		}
	}
}

func TestT07NoCredentialInFreeText(t *testing.T) {
	jwt := "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
	for _, text := range []string{
		"my-agent " + jwt,
		"Get https://b/k?X-Amz-Signature=deadbeefcanary&X-Amz-Expires=3: refused",
		"GET /?x-amz-security-token=canary%2Fabc",
		"Authorization: Bearer canary-canary-canary-canary",
		"authorization:bEaReR\tcanary-canary-canary-canary",
		"/?x-aMz-sIgnature=canary",
		"AWS4-HMAC-SHA256 Credential=AKIAcanary/2026/eu/s3/aws4_request, Signature=00",
	} {
		ev := Event{UserAgent: text, Error: text, Decision: Decision{Reasons: []string{text}}}
		got := line(Config{}, ev)
		if strings.Contains(got, "canary") || strings.Contains(got, jwt) || !strings.Contains(got, "[removed]") {
			t.Error(got)
		}
	}
	for _, text := range []string{`no credentials: send "Authorization: Bearer <token>"`, "the bearer token has expired", "aws-cli/2.0 md/Botocore#1.43"} {
		if got := withoutCredentials(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestShadowCannotBreakTheLine(t *testing.T) {
	for _, raw := range []string{"{\n\"allow\": true\n}", "not json", "{}\n{}"} {
		ev := Event{Decision: Decision{Shadow: json.RawMessage(raw)}}
		got := line(Config{}, ev)
		if strings.Count(got, "\n") != 1 || !json.Valid([]byte(got)) {
			t.Errorf("%q gave %q", raw, got)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	ev, e := typicalEvent(), newEncoder(Config{})
	ev.Identity = (&Log{encoder: e}).Keep(ev.Identity)
	b.Run("journal", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		var was settled
		for b.Loop() {
			buf, _ = e.appendParts(buf[:0], &ev)
			e.settle(&was, &ev)
		}
		b.SetBytes(int64(len(buf)))
	})
	b.Run("commit", func(b *testing.B) {
		b.ReportAllocs()
		begun, buf := ev, []byte(nil)
		begun.DurationMS = 0
		journalled, at := e.appendParts(make([]byte, slack), &begun)
		var was, now settled
		e.settle(&was, &ev)
		for b.Loop() {
			buf = append(buf[:0], journalled...)
			if !e.settle(&now, &ev) || now != was {
				b.Fatal("it has changed")
			}
			buf, _ = putEnd(buf, slack, at, &ev)
		}
		b.SetBytes(int64(len(buf)))
	})
}

// typicalEvent is a GetObject as most are.
func typicalEvent() Event {
	ev := fullEvent()
	ev.Operation, ev.Key, ev.VersionID = "GetObject", "acme/web/builds/2026-11-23/build.tgz", ""
	ev.Accesses = []Access{{Action: "s3:GetObject", Bucket: "artifacts", Key: ev.Key, Allow: true}}
	ev.Decision.Reasons, ev.Decision.Shadow = nil, nil
	return ev
}
