package proxy

import (
	"encoding/json"
	"slices"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// recordAccesses appends the event's account of what was needed and what policy said of it. Without verdicts nothing
// was allowed.
func recordAccesses(records []audit.Access, accesses []s3wire.Access, verdicts []policy.Verdict) []audit.Access {
	records = slices.Grow(records, len(accesses))
	for i, a := range accesses {
		records = append(records, audit.Access{
			Action: a.Action, Bucket: a.Bucket, Key: a.Key, VersionID: a.VersionID, Prefix: a.Prefix, Delimiter: a.Delimiter,
			Allow: i < len(verdicts) && verdicts[i].Allow,
		})
	}
	return records
}

type recordedIn struct{ log *audit.Log }

// recordIdentity is id as log records it, which is encoded once for all of its requests.
func recordIdentity(log *audit.Log, id *identity.Identity) audit.Identity {
	return *id.Derived(recordedIn{log}, func() any {
		recorded := log.Keep(audit.Identity{
			Issuer: id.Issuer, Subject: id.Subject, Session: id.Session, Method: id.Method,
			Attributes: audit.Attributes(id.Attributes), Claims: id.Claims,
		})
		return &recorded
	}).(*audit.Identity)
}

func encodeShadow(s *policy.ShadowDecision) json.RawMessage {
	encoded, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings and booleans
	}
	return encoded
}
