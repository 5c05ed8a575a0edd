package s3.authz_test

import data.s3.authz

github := "https://token.actions.githubusercontent.com"

pipelines := {github: {"acme/web": {"artifacts": true}}}

test_ci_reads if {
	authz.allow with input as on_key("s3:GetObject", "artifacts", "k")
		with input.identity.issuer as github
		with data.ci as pipelines
	authz.allow with input as listing("artifacts", "")
		with input.identity.issuer as github
		with data.ci as pipelines
}

test_ci_changes_nothing if {
	every action in {"s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:PutObjectTagging"} {
		not authz.allow with input as on_key(action, "artifacts", "k")
			with input.identity.issuer as github
			with data.ci as pipelines
	}
}

test_ci_of_others if {
	not authz.allow with input as on_key("s3:GetObject", "artifacts", "k")
		with input.identity.issuer as github
		with input.identity.attributes.repository as "evil/web"
		with data.ci as pipelines
	not authz.allow with input as on_key("s3:GetObject", "secrets", "k")
		with input.identity.issuer as github
		with data.ci as pipelines
}

# A workspace of the same repository is no pipeline.
test_ci_is_told_by_issuer if {
	not authz.allow with input as on_key("s3:GetObject", "artifacts", "k") with data.ci as pipelines
}
