package s3.authz_test

import data.s3.authz

emergency := {"reason": "^INC-[0-9]{1,8}$", "users": {"https://app.gitpod.io": {"dev@acme.com": true}}}

role(reason) := concat("", ["arn:aws:iam::000000000000:role/break-glass/", reason])

test_breakglass_reads_with_a_reason if {
	authz.allow with input as on_key("s3:GetObject", "any", "k")
		with input.identity.requested_role as role("INC-4711")
		with data.breakglass as emergency
	authz.allow with input as listing("any", "")
		with input.identity.requested_role as role("INC-4711")
		with data.breakglass as emergency
	not authz.allow with input as on_key("s3:PutObject", "any", "k")
		with input.identity.requested_role as role("INC-4711")
		with data.breakglass as emergency
}

test_breakglass_not_without if {
	every asked in {"", role(""), role("please"), role("INC-4711/x"), "arn:aws:iam::1:role/INC-4711"} {
		not authz.allow with input as on_key("s3:GetObject", "any", "k")
			with input.identity.requested_role as asked
			with data.breakglass as emergency
	}
	"on call? ask for the role arn:aws:iam::000000000000:role/break-glass/INCIDENT" in authz.reasons with input as on_key("s3:GetObject", "any", "k")
		with data.breakglass as emergency
}

test_breakglass_not_for_others if {
	not authz.allow with input as on_key("s3:GetObject", "any", "k")
		with input.identity.requested_role as role("INC-4711")
		with input.identity.attributes.user as "other@acme.com"
		with data.breakglass as emergency
	not authz.allow with input as on_key("s3:GetObject", "any", "k")
		with input.identity.requested_role as role("INC-4711")
		with input.identity.issuer as "https://evil.example.com"
		with data.breakglass as emergency
}
