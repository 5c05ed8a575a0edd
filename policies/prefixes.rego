# Prefixes from claims: a workspace has the run of the folder that its token names, and of no other.
# prefixes.yaml says in which buckets, and after which attribute of the identity the folders are called.
package s3.authz

may_visit if data.prefixes.buckets[input.bucket]

may_list if startswith(place, own_prefix)

may_read if startswith(place, own_prefix)

may_write if startswith(place, own_prefix)

may_delete if startswith(place, own_prefix)

# "web/", for the project web. The slash matters: "web" alone would open "web-payments/" too.
own_prefix := concat("", [name, "/"]) if {
	name := input.identity.attributes[data.prefixes.buckets[input.bucket]]
	plain(name)
}

reasons contains sprintf("in %s you have %s: list with the slash at the end", [input.bucket, own_prefix]) if {
	input.action in {"s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads"}
	not startswith(place, own_prefix)
}
