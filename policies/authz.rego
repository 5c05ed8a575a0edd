# The frame that the other files fill in. It translates S3's actions into five verbs, so that each idea only says
# who may do what where:
#
#   may_visit    know that the bucket is there: clients ask for it before they use it
#   may_list     list below input.prefix, old versions and unfinished uploads too
#   may_read     read the object input.key, old versions of it too
#   may_write    write it, in parts or at once
#   may_delete   delete it
#
# Nothing is allowed until another file says so; what any of them denies stays denied.
package s3.authz

default may_visit := false

default may_list := false

default may_read := false

default may_write := false

default may_delete := false

# Everybody may ask which buckets there are: the answer holds only those that one may list.
allow if input.action == "s3:ListAllMyBuckets"

allow if {
	input.action in {"s3:GetBucketLocation", "s3:GetBucketVersioning", "s3:GetBucketObjectLockConfiguration"}
	may_visit
}

# HeadBucket and ListBuckets need s3:ListBucket too, but list no object.
allow if {
	input.action == "s3:ListBucket"
	input.operation in {"HeadBucket", "ListBuckets"}
	may_visit
}

allow if {
	input.action in {"s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads"}
	not input.operation in {"HeadBucket", "ListBuckets"}
	may_list
}

allow if {
	input.action in {
		"s3:GetObject",
		"s3:GetObjectVersion",
		"s3:GetObjectAttributes",
		"s3:GetObjectVersionAttributes",
		"s3:GetObjectTagging",
		"s3:GetObjectVersionTagging",
	}
	may_read
}

# s3:PutObject is also what each call of a multipart upload needs, but for these two.
allow if {
	input.action in {
		"s3:PutObject",
		"s3:PutObjectTagging",
		"s3:DeleteObjectTagging",
		"s3:AbortMultipartUpload",
		"s3:ListMultipartUploadParts",
	}
	may_write
}

# s3:DeleteObjectVersion is left out: it destroys what versioning keeps.
allow if {
	input.action == "s3:DeleteObject"
	may_delete
}

# What a refused developer reads, after "AccessDenied".
reasons contains sprintf("no rule lets %s do %s on %s", [who, input.action, input.bucket]) if {
	not allow
	not input.key
	input.prefix == ""
}

reasons contains sprintf("no rule lets %s do %s on %s/%s", [who, input.action, input.bucket, place]) if {
	not allow
	place != ""
}

# The place that a request is about: a key, or the prefix of a listing.
place := input.key

place := input.prefix if not input.key

who := input.identity.attributes.user if input.identity.attributes.user != ""

who := input.identity.subject if input.identity.attributes.user == ""

# A name from a token is used in paths only where it is a plain name: no slash, no "..", nothing that means
# something to S3 or IAM.
plain(name) if {
	is_string(name)
	regex.match(`^[A-Za-z0-9][A-Za-z0-9@._-]*$`, name)
}
