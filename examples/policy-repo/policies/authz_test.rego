package s3.authz_test

import data.s3.authz

object(action, bucket, key) := {
	"action": action,
	"bucket": bucket,
	"key": key,
	"identity": {"attributes": {"project": "web"}},
}

test_own_folder if {
	authz.allow with input as object("s3:PutObject", "artifacts", "web/x")
	not authz.allow with input as object("s3:PutObject", "artifacts", "api/x")
}

test_releases_are_read_only if {
	authz.allow with input as object("s3:GetObject", "acme-releases", "any")
	not authz.allow with input as object("s3:PutObject", "acme-releases", "any")
}
