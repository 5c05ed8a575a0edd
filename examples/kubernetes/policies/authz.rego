# Each namespace may do everything below its own prefix of the bucket "artifacts", and list it.
package s3.authz

own := concat("", [input.identity.attributes.project, "/"])

allow if {
	input.bucket == "artifacts"
	startswith(input.key, own)
}

allow if {
	input.action == "s3:ListBucket"
	input.bucket == "artifacts"
	startswith(input.prefix, own)
}

reasons contains sprintf("namespace %s works below artifacts/%s", [input.identity.attributes.project, own]) if not allow
