# AI agents: the rights of the developer they work for, less what cannot be undone. They need no rules of their
# own: an agent's token names its developer's user and project, so whatever these may do, the agent may. Here is
# only what it may not, and how fast it may go.
package s3.authz

deny contains sprintf("agents may not do %s: ask your developer", [input.action]) if {
	input.action in {
		"s3:DeleteObject",
		"s3:DeleteObjectVersion",
		"s3:DeleteObjectTagging",
		"s3:DeleteObjectVersionTagging",
		"s3:DeleteObjectAnnotation",
		"s3:DeleteObjectVersionAnnotation",
		"s3:DeleteBucket",
		"s3:DeleteBucketPolicy",
		"s3:DeleteBucketWebsite",
		"s3:BypassGovernanceRetention",
		"s3:PutLifecycleConfiguration", # deletes, only later
		"s3:PutBucketVersioning", # and so does the next overwrite without it
	}
	agent
}

# It deletes the object that it renames.
deny contains "agents may not rename objects: copy them" if {
	input.operation == "RenameObject"
	agent
}

limits := data.agents.limits if agent

# agents.yaml tells by which claim an agent is known, for each issuer.
agent if {
	some claim, values in data.agents.known_by[input.identity.issuer]
	input.identity.claims[claim] in values
}
