package s3.authz_test

import data.s3.authz

artifacts := {"buckets": {"artifacts": "project", "home": "user"}}

test_prefix_own_objects if {
	every action in {
		"s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectTagging",
		"s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts",
		"s3:DeleteObject",
	} {
		authz.allow with input as on_key(action, "artifacts", "web/build.tgz") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	}
	authz.allow with input as on_key("s3:PutObject", "home", "dev@acme.com/x") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
}

test_prefix_no_other if {
	every key in {"api/build.tgz", "web", "webshop/x", "/web/x", "../web/x", "WEB/x"} {
		not authz.allow with input as on_key("s3:GetObject", "artifacts", key) with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	}
	not authz.allow with input as on_key("s3:GetObject", "secrets", "web/x") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
}

test_prefix_never_what_destroys_or_opens if {
	every action in {"s3:DeleteObjectVersion", "s3:PutObjectAcl", "s3:BypassGovernanceRetention", "s3:PutObjectRetention"} {
		not authz.allow with input as on_key(action, "artifacts", "web/x") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	}
	every action in {"s3:DeleteBucket", "s3:PutBucketPolicy", "s3:PutLifecycleConfiguration", "s3:CreateBucket"} {
		not authz.allow with input as bucket_call(action, "X", "artifacts") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	}
}

# Old versions are read and listed as the newest is. To delete them, or to have none kept, is for administrators.
test_prefix_old_versions if {
	authz.allow with input as on_key("s3:GetObjectVersion", "artifacts", "web/x") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	authz.allow with input as object.union(listing("artifacts", "web/"), {"action": "s3:ListBucketVersions", "operation": "ListObjectVersions"}) with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	not authz.allow with input as on_key("s3:GetObjectVersion", "artifacts", "api/x") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	not authz.allow with input as on_key("s3:DeleteObjectVersion", "artifacts", "web/x") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	not authz.allow with input as bucket_call("s3:PutBucketVersioning", "PutBucketVersioning", "artifacts") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
}

test_prefix_listing if {
	authz.allow with input as listing("artifacts", "web/") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	authz.allow with input as listing("artifacts", "web/2026/") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	not authz.allow with input as listing("artifacts", "") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	not authz.allow with input as listing("artifacts", "web") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
}

# What aws, boto3, rclone and mc ask before they start.
test_prefix_first_calls if {
	authz.allow with input as bucket_call("s3:ListAllMyBuckets", "ListBuckets", "") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	authz.allow with input as bucket_call("s3:ListBucket", "ListBuckets", "artifacts") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	authz.allow with input as bucket_call("s3:ListBucket", "HeadBucket", "artifacts") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	authz.allow with input as bucket_call("s3:GetBucketLocation", "GetBucketLocation", "artifacts") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	not authz.allow with input as bucket_call("s3:ListBucket", "ListBuckets", "secrets") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	not authz.allow with input as bucket_call("s3:ListBucket", "HeadBucket", "secrets") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
}

test_prefix_odd_names if {
	every name in {"", "..", ".", "/", "web/../api", "*", "we*b", "web\n", "ü", ["web"], null} {
		not authz.allow with input as on_key("s3:GetObject", "artifacts", sprintf("%v/x", [name]))
			with data.prefixes as artifacts with data.grants as {} with data.listings as {}
			with input.identity.attributes.project as name
	}
}

test_prefix_reasons if {
	reasons := authz.reasons with input as listing("artifacts", "web") with data.prefixes as artifacts with data.grants as {} with data.listings as {}
	reasons == {
		"in artifacts you have web/: list with the slash at the end",
		"no rule lets dev@acme.com do s3:ListBucket on artifacts/web",
	}
}

# Without data, as shipped, nothing is open.
test_prefix_inert if {
	not authz.allow with input as on_key("s3:GetObject", "artifacts", "web/build.tgz") with data.prefixes.buckets as {} with data.grants as {} with data.listings as {}
	not authz.allow with input as bucket_call("s3:ListBucket", "HeadBucket", "artifacts") with data.prefixes.buckets as {} with data.grants as {} with data.listings as {}
}
