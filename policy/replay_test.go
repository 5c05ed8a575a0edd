package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/policy"
)

// recorded is a line of the audit log, as the contract has it.
func recorded(id, subject, project, action, bucket, key string, allow bool, role string) string {
	return fmt.Sprintf(`{"schema":"sluice.audit/1","seq":1,"id":%q,"time":"2026-11-23T00:00:00.123456Z","duration_ms":12.4,`+
		`"identity":{"issuer":"i","subject":%q,"session":"env-42","method":"bearer","attributes":{"workspace":"","project":%q,"repository":"","user":"","groups":null},"claims":{}},`+
		`"source_ip":"10.1.2.3","user_agent":"aws","host":"s3","operation":"GetObject","bucket":%[5]q,"key":%[6]q,"version_id":"",`+
		`"accesses":[{"action":%[4]q,"bucket":%[5]q,"key":%[6]q,"allow":%[7]t}],`+
		`"decision":{"allow":%[7]t,"reasons":[],"role":%[8]q,"policy_revision":"r1","shadow":null},`+
		`"backend":{"name":"aws","status":200,"request_id":""},"status":200,"error":"","outcome":"completed","bytes_in":0,"bytes_out":0,"trace_id":"","prev":""}`,
		id, subject, project, action, bucket, key, allow, role) + "\n"
}

func TestReplay(t *testing.T) {
	inForce := open(t, "package s3.authz\nallow if startswith(input.key, concat(``, [input.identity.attributes.project, `/`]))\nrole := \"a\" if input.bucket == \"roles\"\n")
	candidate := open(t, "package s3.authz\nallow if { startswith(input.key, concat(``, [input.identity.attributes.project, `/`])); input.action != `s3:DeleteObject` }\nallow if input.bucket == `public`\n"+
		"role := \"b\" if input.bucket == \"roles\"\nreasons contains `never delete` if input.action == `s3:DeleteObject`\n")
	var log strings.Builder
	for i := range 3 {
		log.WriteString(recorded(fmt.Sprint("d", i), "dev", "web", "s3:DeleteObject", "b", fmt.Sprint("web/", i), true, "x"))
	}
	log.WriteString(recorded("p1", "dev", "web", "s3:GetObject", "public", "other/x", false, ""))
	log.WriteString(recorded("g1", "dev", "web", "s3:GetObject", "b", "web/x", true, "default"))
	log.WriteString(recorded("r1", "dev", "web", "s3:GetObject", "roles", "web/x", true, "a"))
	log.WriteString(recorded("u1", "other", "api", "s3:GetObject", "b", "web/x", true, "x")) // recorded by a policy that is no more
	log.WriteString(strings.ReplaceAll(recorded("n1", "", "", "", "", "", false, ""), `"policy_revision":"r1"`, `"policy_revision":""`))

	report, err := policy.Replay(context.Background(), candidate, inForce, policy.ReadEvents(strings.NewReader(log.String())))
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
	report, err = policy.Replay(context.Background(), inForce, inForce, policy.ReadEvents(strings.NewReader(log.String())))
	if err != nil || report.Changes() {
		t.Errorf("%+v, %v", report, err)
	}
	// A candidate that cannot decide is told, and a log that cannot be read is an error.
	failing := open(t, "package s3.authz\nallow if to_number(input.key) > 1\n")
	report, err = policy.Replay(context.Background(), failing, nil, policy.ReadEvents(strings.NewReader(log.String())))
	if err != nil || report.Differences[0].Change != policy.Failed {
		t.Errorf("%+v, %v", report, err)
	}
	if _, err := policy.Replay(context.Background(), candidate, nil, policy.ReadEvents(strings.NewReader(log.String()+"nonsense"))); err == nil {
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
	var log bytes.Buffer
	for i := range n {
		key := []string{"web/", "shared/", "secret/"}[i%3] + fmt.Sprint(i)
		log.WriteString(recorded(fmt.Sprint(i), fmt.Sprint("dev", i%500), "web", "s3:GetObject", "artifacts", key, i%3 != 2, "r"))
	}
	start := time.Now()
	report, err := policy.Replay(context.Background(), e, e, policy.ReadEvents(&log))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d events in %v", report.Events, time.Since(start))
	if report.Events != n || len(report.Differences) != 0 {
		text, _ := json.Marshal(report)
		t.Errorf("%.2000s", text)
	}
}
