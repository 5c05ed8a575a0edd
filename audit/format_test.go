package audit

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/rego"
)

// formatCases are events of every sort.
func formatCases() map[string]Event {
	full := fullEvent()
	refused := fullEvent()
	refused.Outcome, refused.Status, refused.Decision.Allow, refused.Decision.Reasons = Refused, 403, false, []string{"no grant"}
	list := Event{ID: "01KAQ2J4Q0ABCDEFGHJKMNPQRS", Time: time.Unix(1795420800, 0), Operation: "ListObjectsV2", Bucket: "b", Outcome: Completed, Status: 200,
		Accesses: []Access{{Action: "s3:ListBucket", Bucket: "b", Prefix: "x/"}}, SourceIP: "::1"}
	return map[string]Event{
		"full":        full,
		"refused":     refused,
		"a listing":   list,
		"nothing yet": {ID: "01KAQ2J4Q0ABCDEFGHJKMNPQRS", Time: time.Unix(1795420800, 0), Outcome: Interrupted, Error: interruptedError},
		"a login":     {ID: "01KAQ2J4Q0ABCDEFGHJKMNPQRS", Time: time.Unix(1795420800, 0), Operation: "AssumeRoleWithWebIdentity", Outcome: Failed, Status: 503},
	}
}

func TestFormatsHoldToTheirSchemas(t *testing.T) {
	for name, tc := range map[string]struct {
		schema string
		write  func(ev *Event, line []byte) ([]byte, error)
	}{
		"ocsf":        {"testdata/ocsf-api-activity.schema.json", func(ev *Event, line []byte) ([]byte, error) { return appendOCSF(nil, ev) }},
		"cloudevents": {"testdata/cloudevents.schema.json", func(ev *Event, line []byte) ([]byte, error) { return appendCloudEvent(nil, ev, line, "host-1") }},
	} {
		schema, err := os.ReadFile(tc.schema)
		if err != nil {
			t.Fatal(err)
		}
		// OPA is at hand, and validates JSON Schema.
		query, err := rego.New(rego.Query("result := json.match_schema(input.document, input.schema)")).PrepareForEval(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		match := func(t *testing.T, document []byte) (bool, any) {
			t.Helper()
			rs, err := query.Eval(context.Background(), rego.EvalInput(map[string]any{"document": string(document), "schema": string(schema)}), rego.EvalTime(time.Now()))
			if err != nil || len(rs) != 1 {
				t.Fatal(err, rs)
			}
			result := rs[0].Bindings["result"].([]any)
			return result[0].(bool), result[1]
		}
		for kind, ev := range formatCases() {
			t.Run(name+" "+kind, func(t *testing.T) {
				ev.Seq, ev.Prev = 7, noPrev
				raw := line(Config{}, ev)
				// As a shipper does: from the line.
				var back Event
				if err := json.Unmarshal([]byte(raw), &back); err != nil {
					t.Fatal(err)
				}
				document, err := tc.write(&back, []byte(strings.TrimSuffix(raw, "\n")))
				if err != nil {
					t.Fatal(err)
				}
				if ok, errors := match(t, document); !ok {
					t.Errorf("%v\n%s", errors, document)
				}
				var broken map[string]any
				json.Unmarshal(document, &broken)
				for _, required := range []string{"metadata", "source"} {
					delete(broken, required)
				}
				without, _ := json.Marshal(broken)
				if ok, _ := match(t, without); ok {
					t.Error("the schema lets anything through")
				}
			})
		}
	}
}

func TestOCSFActivities(t *testing.T) {
	for operation, want := range map[string]int{
		"GetObject": 2, "HeadBucket": 2, "ListObjectsV2": 2, "SelectObjectContent": 2, "PutObject": 1, "CopyObject": 1, "CreateBucket": 1, "CreateMultipartUpload": 1,
		"UploadPart": 1, "UploadPartCopy": 1, "CompleteMultipartUpload": 1, "PutObjectTagging": 3, "PutBucketPolicy": 3, "RestoreObject": 3, "RenameObject": 3, "DeleteObject": 4, "DeleteObjects": 4,
		"AbortMultipartUpload": 4, "AssumeRoleWithWebIdentity": 99, "": 0,
	} {
		if got, _ := ocsfActivity(operation); got != want {
			t.Errorf("%s: %d, want %d", operation, got, want)
		}
	}
}
