package s3.authz_test

import data.s3.authz

owners := {"web-cache": "web", "api-cache": "api", "nobody": ""}

test_bucket_own if {
	every action in {"s3:GetObject", "s3:PutObject", "s3:DeleteObject"} {
		authz.allow with input as on_key(action, "web-cache", "any/key") with data.buckets as owners
	}
	authz.allow with input as listing("web-cache", "") with data.buckets as owners
	authz.allow with input as bucket_call("s3:ListBucket", "HeadBucket", "web-cache") with data.buckets as owners
}

test_bucket_of_another if {
	every bucket in {"api-cache", "nobody", "unknown"} {
		not authz.allow with input as on_key("s3:GetObject", bucket, "k") with data.buckets as owners
		not authz.allow with input as listing(bucket, "") with data.buckets as owners
	}
}

test_bucket_without_project if {
	not authz.allow with input as on_key("s3:GetObject", "nobody", "k")
		with data.buckets as owners
		with input.identity.attributes.project as ""
}

test_bucket_itself_is_not_theirs_to_change if {
	every action in {"s3:DeleteBucket", "s3:PutBucketPolicy", "s3:PutBucketAcl", "s3:PutLifecycleConfiguration"} {
		not authz.allow with input as bucket_call(action, trim_prefix(action, "s3:"), "web-cache") with data.buckets as owners
	}
}
