package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/policy"
)

// recorded is an event of the audit log.
func recorded(id, subject, project, action, bucket, key string, allow bool, role string) *policy.Event {
	identity, err := json.Marshal(policy.RecordedIdentity{
		Issuer: "i", Subject: subject, Session: "env-42", Method: "bearer", Attributes: policy.Attributes{Project: project},
	})
	if err != nil {
		panic(err)
	}
	return &policy.Event{
		ID: id, Time: time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC), Identity: identity, SourceIP: "10.1.2.3", Operation: "GetObject",
		Accesses: []policy.RecordedAccess{{Action: action, Bucket: bucket, Key: key, Allow: allow}},
		Decision: policy.RecordedDecision{Allow: allow, Role: role, Revision: "r1"}, Backend: "aws",
	}
}

// log yields events, and then err where there is one.
func log(events []*policy.Event, err error) iter.Seq2[*policy.Event, error] {
	return func(yield func(*policy.Event, error) bool) {
		for _, e := range events {
			if !yield(e, nil) {
				return
			}
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

func TestReplay(t *testing.T) {
	inForce := open(t, "package s3.authz\nallow if startswith(input.key, concat(``, [input.identity.attributes.project, `/`]))\nrole := \"a\" if input.bucket == \"roles\"\n")
	candidate := open(t, "package s3.authz\nallow if { startswith(input.key, concat(``, [input.identity.attributes.project, `/`])); input.action != `s3:DeleteObject` }\nallow if input.bucket == `public`\n"+
		"role := \"b\" if input.bucket == \"roles\"\nreasons contains `never delete` if input.action == `s3:DeleteObject`\n")
	var events []*policy.Event
	for i := range 3 {
		events = append(events, recorded(fmt.Sprint("d", i), "dev", "web", "s3:DeleteObject", "b", fmt.Sprint("web/", i), true, "x"))
	}
	events = append(events, recorded("p1", "dev", "web", "s3:GetObject", "public", "other/x", false, ""))
	events = append(events, recorded("g1", "dev", "web", "s3:GetObject", "b", "web/x", true, "default"))
	events = append(events, recorded("r1", "dev", "web", "s3:GetObject", "roles", "web/x", true, "a"))
	events = append(events, recorded("u1", "other", "api", "s3:GetObject", "b", "web/x", true, "x")) // recorded by a policy that is no more
	events = append(events, recorded("n1", "", "", "", "", "", false, ""))
	events[len(events)-1].Decision.Revision = "" // refused before policy was asked

	report, err := policy.Replay(context.Background(), candidate, inForce, log(events, nil))
	if err != nil {
		t.Fatal(err)
	}
	if report.Events != 7 || report.Skipped != 1 || !report.Changes() {
		t.Errorf("%+v", report)
	}
	var have []string
	for _, d := range report.Differences {
		have = append(have, fmt.Sprint(d.Change, " ", d.Count, " ", d.Subject, " ", d.Action, " ", d.Bucket, "/", d.Example, " ", d.EventID, " ", d.From, ">", d.To, " ", d.Reasons))
	}
	want := []string{
		"newly refused 3 dev s3:DeleteObject b/web/0 d0 > [never delete]",
		"newly allowed 1 dev s3:GetObject public/other/x p1 > []",
		"role changed 1 dev s3:GetObject roles/web/x r1 a>b []",
		"unsure 1 other s3:GetObject b/web/x u1 > []",
	}
	if strings.Join(have, "\n") != strings.Join(want, "\n") {
		t.Errorf("have\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
	var text bytes.Buffer
	if err := report.WriteText(&text); err != nil || !strings.Contains(text.String(), "newly refused: 3\n") {
		t.Errorf("%v\n%s", err, text.String())
	}

	// Against itself nothing changes.
	report, err = policy.Replay(context.Background(), inForce, inForce, log(events, nil))
	if err != nil || report.Changes() {
		t.Errorf("%+v, %v", report, err)
	}
	// A candidate that cannot decide is told, and a log that cannot be read is an error.
	failing := open(t, "package s3.authz\nallow if to_number(input.key) > 1\n")
	report, err = policy.Replay(context.Background(), failing, nil, log(events, nil))
	if err != nil || report.Differences[0].Change != policy.Failed {
		t.Errorf("%+v, %v", report, err)
	}
	if _, err := policy.Replay(context.Background(), candidate, nil, log(events, errors.New("not a log"))); err == nil {
		t.Error("nonsense replayed")
	}
}

// TestReplayMany: what a day's log takes.
func TestReplayMany(t *testing.T) {
	n := 20_000
	if s := os.Getenv("POLICY_EVENTS"); s != "" {
		fmt.Sscan(s, &n)
	}
	e := openDir(t, startersDir(t, grown(100)))
	var events []*policy.Event
	for i := range n {
		key := []string{"web/", "shared/", "secret/"}[i%3] + fmt.Sprint(i)
		events = append(events, recorded(fmt.Sprint(i), fmt.Sprint("dev", i%500), "web", "s3:GetObject", "artifacts", key, i%3 != 2, "r"))
	}
	start := time.Now()
	report, err := policy.Replay(context.Background(), e, e, log(events, nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d events in %v", report.Events, time.Since(start))
	if report.Events != n || len(report.Differences) != 0 {
		text, _ := json.Marshal(report)
		t.Errorf("%.2000s", text)
	}
}

// TestReplayRefusedEitherWay: what the caller did not get is not newly refused, and what it still does not get is not
// newly allowed.
func TestReplayRefusedEitherWay(t *testing.T) {
	event := func(operation string, refused bool, accesses ...policy.RecordedAccess) *policy.Event {
		e := recorded("e", "dev", "web", "", "", "", true, "r")
		e.Operation, e.Accesses, e.Refused = operation, accesses, refused
		for _, a := range accesses {
			e.Decision.Allow = e.Decision.Allow && a.Allow
		}
		return e
	}
	put := func(allow bool) policy.RecordedAccess {
		return policy.RecordedAccess{Action: "s3:PutObject", Bucket: "b", Key: "k", Allow: allow}
	}
	acl := func(allow bool) policy.RecordedAccess {
		return policy.RecordedAccess{Action: "s3:PutObjectAcl", Bucket: "b", Key: "k", Allow: allow}
	}
	del := func(key string, allow bool) policy.RecordedAccess {
		return policy.RecordedAccess{Action: "s3:DeleteObject", Bucket: "b", Key: key, Allow: allow}
	}
	for _, test := range []struct {
		name, candidate string
		event           *policy.Event
		want            string
	}{
		{"one access, or both", "allow := false", event("PutObject", true, put(true), acl(false)), ""},
		{"one access, or the other", "allow if input.action == `s3:PutObjectAcl`", event("PutObject", true, put(true), acl(false)), ""},
		{"for its size", "allow := false", event("PutObject", true, put(true)), ""},
		{"refused, on other terms", "allow if input.action == `s3:PutObject`\nrole := `other`", event("PutObject", true, put(true), acl(false)), ""},
		{"refused, then allowed", "allow := true", event("PutObject", true, put(true), acl(false)), "newly allowed s3:PutObjectAcl b/k"},
		{"allowed, then refused for one", "allow if input.action == `s3:PutObject`", event("PutObject", false, put(true), acl(true)), "newly refused s3:PutObjectAcl b/k"},
		{"failed, which is not refused", "allow := false", event("PutObject", false, put(true)), "newly refused s3:PutObject b/k"},
		{"another key", "allow if input.key == `l`", event("DeleteObjects", false, del("k", true), del("l", false)), "newly refused s3:DeleteObject b/k; newly allowed s3:DeleteObject b/l"},
		{"the role that the backend refused", "allow := true\nrole := `other`", event("PutObject", true, put(true)), "role changed s3:PutObject b/k"},
	} {
		t.Run(test.name, func(t *testing.T) {
			report, err := policy.Replay(context.Background(), open(t, "package s3.authz\n"+test.candidate+"\n"), nil, log([]*policy.Event{test.event}, nil))
			if err != nil {
				t.Fatal(err)
			}
			var have []string
			for _, d := range report.Differences {
				have = append(have, fmt.Sprintf("%s %s %s/%s", d.Change, d.Action, d.Bucket, d.Example))
			}
			if strings.Join(have, "; ") != test.want {
				t.Errorf("have %q, want %q", have, test.want)
			}
		})
	}
}
