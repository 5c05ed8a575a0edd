package s3.authz_test

import data.s3.authz

boxes := {"dev@acme.com": {
	"logs": {"may": "read", "until": "2026-12-01T00:00:00Z"},
	"dumps": {"may": "write", "until": "2026-12-01T01:00:00+01:00"},
}}

test_timeboxed_while_it_lasts if {
	authz.allow with input as on_key("s3:GetObject", "logs", "k") with data.timeboxed as boxes
	authz.allow with input as listing("logs", "") with data.timeboxed as boxes
	not authz.allow with input as on_key("s3:PutObject", "logs", "k") with data.timeboxed as boxes
	authz.allow with input as on_key("s3:PutObject", "dumps", "k") with data.timeboxed as boxes
	not authz.allow with input as on_key("s3:DeleteObject", "dumps", "k") with data.timeboxed as boxes
}

test_timeboxed_until_then if {
	every bucket in {"logs", "dumps"} {
		authz.allow with input as on_key("s3:GetObject", bucket, "k")
			with input.request.time as "2026-11-30T23:59:59Z"
			with data.timeboxed as boxes
		not authz.allow with input as on_key("s3:GetObject", bucket, "k")
			with input.request.time as "2026-12-01T00:00:00Z"
			with data.timeboxed as boxes
	}
}

test_timeboxed_reason if {
	"your grant for logs ended 2026-12-01T00:00:00Z" in authz.reasons with input as on_key("s3:GetObject", "logs", "k")
		with input.request.time as "2027-01-01T00:00:00Z"
		with data.timeboxed as boxes
}

test_timeboxed_for_one if {
	not authz.allow with input as on_key("s3:GetObject", "logs", "k")
		with input.identity.attributes.user as "other@acme.com"
		with data.timeboxed as boxes
}
