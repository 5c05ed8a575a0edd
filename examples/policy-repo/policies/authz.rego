# The whole policy of this example: each project has its folder in every bucket, and releases are for all to read.
package s3.authz

allow if {
	input.action in {"s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"}
	startswith(input.key, own)
}

allow if {
	input.action == "s3:GetObject"
	data.releases[input.bucket]
}

own := concat("", [input.identity.attributes.project, "/"]) if input.identity.attributes.project != ""

reasons contains sprintf("%s is not below %s", [input.key, own]) if not startswith(input.key, own)
