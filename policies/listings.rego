# Listings that show only what one may see: in these buckets everybody may list anywhere, and what they may not
# read is left out of the answer. So `aws s3 ls s3://artifacts/` shows your own folders and no others.
package s3.authz

may_list if data.listings.buckets[input.bucket]

filter_listing if {
	input.action in {"s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads"}
	data.listings.buckets[input.bucket]
}
