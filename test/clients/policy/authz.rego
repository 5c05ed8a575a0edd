# Each project may do everything below its own prefix of the bucket "artifacts", list it, and ask whether and where the bucket is.
package s3.authz

allow if {
	input.bucket == "artifacts"
	startswith(input.key, own)
}

allow if {
	input.action in {"s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads"}
	input.bucket == "artifacts"
	startswith(input.prefix, own)
}

# s3fs lists the bucket from its beginning before it mounts. Of such a listing one sees one's own keys.
allow if {
	input.action == "s3:ListBucket"
	input.bucket == "artifacts"
	input.prefix == ""
}

filter_listing if input.prefix == ""

allow if {
	input.operation in {"HeadBucket", "GetBucketLocation", "GetBucketVersioning", "GetObjectLockConfiguration"}
	input.bucket == "artifacts"
}

allow if input.action == "s3:ListAllMyBuckets"

own := concat("", [input.identity.attributes.project, "/"])

reasons contains sprintf("project %s works below %s", [input.identity.attributes.project, own]) if not allow
