# What the tests ask with: a developer of project web, and the shapes that an input has.
package s3.authz_test

dev := {
	"issuer": "https://app.gitpod.io",
	"subject": "dev",
	"requested_role": "",
	"attributes": {"project": "web", "user": "dev@acme.com", "repository": "acme/web", "groups": []},
	"claims": {},
}

# An access to a key.
on_key(action, bucket, key) := {
	"action": action,
	"operation": trim_prefix(action, "s3:"),
	"bucket": bucket,
	"key": key,
	"prefix": "",
	"backend": "aws",
	"identity": dev,
	"request": {"time": "2026-11-23T00:00:00Z"},
}

# An access to what is below a prefix.
listing(bucket, prefix) := {
	"action": "s3:ListBucket",
	"operation": "ListObjectsV2",
	"bucket": bucket,
	"prefix": prefix,
	"backend": "aws",
	"identity": dev,
	"request": {"time": "2026-11-23T00:00:00Z"},
}

# An access to the bucket itself, or to none.
bucket_call(action, operation, bucket) := object.union(listing(bucket, ""), {"action": action, "operation": operation})
