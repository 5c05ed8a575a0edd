# Which role Sluice acts as, and how far AWS itself holds it in: even if every rule above were wrong, the session
# that signs the request could not leave the bucket it is for. Only for backends that assume roles.
package s3.authz

role := data.roles[input.backend].projects[input.identity.attributes.project]

session_policy := {
	"Version": "2012-10-17",
	"Statement": [{
		"Effect": "Allow",
		"Action": "s3:*",
		"Resource": [
			concat("", ["arn:aws:s3:::", input.bucket]),
			concat("", ["arn:aws:s3:::", input.bucket, "/*"]),
		],
	}],
} if {
	data.roles[input.backend].narrow
	plain(input.bucket)
}

# No way round the fence: what cannot be written into it does not pass.
deny contains sprintf("%q is no name for a session policy", [input.bucket]) if {
	data.roles[input.backend].narrow
	input.bucket != ""
	not plain(input.bucket)
}
