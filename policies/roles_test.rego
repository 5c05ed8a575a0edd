package s3.authz_test

import data.s3.authz

web_role := {"aws": {"narrow": true, "projects": {"web": "arn:aws:iam::123456789012:role/sluice-web"}}}

test_role_of_the_project if {
	authz.role == "arn:aws:iam::123456789012:role/sluice-web" with input as on_key("s3:GetObject", "artifacts", "k")
		with data.roles as web_role
	not authz.role with input as on_key("s3:GetObject", "artifacts", "k")
		with input.backend as "minio"
		with data.roles as web_role
}

test_role_is_held_in if {
	statement := authz.session_policy.Statement[0] with input as on_key("s3:GetObject", "artifacts", "k")
		with data.roles as web_role
	statement.Resource == ["arn:aws:s3:::artifacts", "arn:aws:s3:::artifacts/*"]
}

test_role_not_round_the_fence if {
	every bucket in {"*", "a*", "${aws:username}", "a/b"} {
		count(authz.deny) == 1 with input as on_key("s3:GetObject", bucket, "k") with data.roles as web_role
		not authz.session_policy with input as on_key("s3:GetObject", bucket, "k") with data.roles as web_role
	}
}
