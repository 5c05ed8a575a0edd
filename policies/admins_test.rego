package s3.authz_test

import data.s3.authz

platform := {"https://login.acme.com": {"platform-admins": true, "retired": false}}

administrator := object.union(dev, {
	"issuer": "https://login.acme.com",
	"attributes": {"project": "", "user": "root@acme.com", "repository": "", "groups": ["staff", "platform-admins"]},
})

test_admin_everything if {
	authz.allow with input as on_key("s3:DeleteObjectVersion", "any", "k")
		with input.identity as administrator
		with data.admins as platform
	authz.allow with input as bucket_call("s3:PutBucketPolicy", "PutBucketPolicy", "any")
		with input.identity as administrator
		with data.admins as platform
}

test_admin_only_of_that_issuer if {
	not authz.allow with input as on_key("s3:GetObject", "any", "k")
		with input.identity as administrator
		with input.identity.issuer as "https://evil.example.com"
		with data.admins as platform
}

test_admin_only_of_that_group if {
	every groups in {set(), {"staff"}, {"Platform-Admins"}, {"retired"}, {""}} {
		not authz.allow with input as on_key("s3:GetObject", "any", "k")
			with input.identity as administrator
			with input.identity.attributes.groups as [group | some group in groups]
			with data.admins as platform
	}
}
