# Time-boxed grants: a bucket until a date, for one person. Nobody has to remember to take it back.
package s3.authz

may_visit if timeboxed

may_list if timeboxed

may_read if timeboxed

may_write if timeboxed.may == "write"

timeboxed := grant if {
	grant := data.timeboxed[input.identity.attributes.user][input.bucket]
	time.parse_rfc3339_ns(input.request.time) < time.parse_rfc3339_ns(grant.until)
}

reasons contains sprintf("your grant for %s ended %s", [input.bucket, grant.until]) if {
	grant := data.timeboxed[input.identity.attributes.user][input.bucket]
	not timeboxed
}
