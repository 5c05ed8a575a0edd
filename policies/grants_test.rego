package s3.authz_test

import data.s3.authz

web_grants := {"web": {"artifacts": {"api": "read", "shared": "write"}}, "api": {"artifacts": {"secret": "write"}}}

test_grant_read if {
	authz.allow with input as on_key("s3:GetObject", "artifacts", "api/x") with data.grants as web_grants with data.prefixes as {} with data.listings as {}
	authz.allow with input as listing("artifacts", "api/") with data.grants as web_grants with data.prefixes as {} with data.listings as {}
	every action in {"s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"} {
		not authz.allow with input as on_key(action, "artifacts", "api/x") with data.grants as web_grants with data.prefixes as {} with data.listings as {}
	}
}

test_grant_write if {
	every action in {"s3:GetObject", "s3:PutObject", "s3:DeleteObject"} {
		authz.allow with input as on_key(action, "artifacts", "shared/a/b") with data.grants as web_grants with data.prefixes as {} with data.listings as {}
	}
}

test_grant_nothing_else if {
	every key in {"secret/x", "apix", "api", "shared", "/api/x", "a/shared/x"} {
		not authz.allow with input as on_key("s3:GetObject", "artifacts", key) with data.grants as web_grants with data.prefixes as {} with data.listings as {}
	}
	not authz.allow with input as on_key("s3:GetObject", "other", "api/x") with data.grants as web_grants with data.prefixes as {} with data.listings as {}
	not authz.allow with input as listing("artifacts", "api") with data.grants as web_grants with data.prefixes as {} with data.listings as {}
	not authz.allow with input as listing("artifacts", "") with data.grants as web_grants with data.prefixes as {} with data.listings as {}
}

test_grant_visit if {
	authz.allow with input as bucket_call("s3:ListBucket", "HeadBucket", "artifacts") with data.grants as web_grants with data.prefixes as {} with data.listings as {}
	not authz.allow with input as bucket_call("s3:ListBucket", "HeadBucket", "other") with data.grants as web_grants with data.prefixes as {} with data.listings as {}
}

test_grant_without_project if {
	not authz.allow with input as on_key("s3:GetObject", "artifacts", "api/x")
		with data.grants as web_grants with data.prefixes as {} with data.listings as {}
		with input.identity.attributes.project as ""
}
