# A bucket for each project: its developers have all of it. buckets.yaml says whose a bucket is.
package s3.authz

may_visit if own_bucket

may_list if own_bucket

may_read if own_bucket

may_write if own_bucket

may_delete if own_bucket

own_bucket if {
	input.identity.attributes.project != ""
	data.buckets[input.bucket] == input.identity.attributes.project
}
