# Read-only for CI: a pipeline fetches what its repository needs, and can change nothing. What tells a pipeline
# from a workspace is who vouches for it: the CI system's own issuer.
package s3.authz

may_visit if ci_buckets[input.bucket]

may_list if ci_buckets[input.bucket]

may_read if ci_buckets[input.bucket]

ci_buckets := data.ci[input.identity.issuer][input.identity.attributes.repository]
