package s3wire

import (
	"fmt"
	"slices"
	"strings"
)

// level is what an operation is addressed to.
type level uint8

const (
	service level = iota // GET /
	bucket               // /bucket
	object               // /bucket/key
)

func (l level) String() string {
	return [...]string{"service", "bucket", "object"}[l]
}

// sourceKind is which header names a second object. S3 tells CopyObject from PutObject by it alone, so it
// selects the operation as a subresource does.
type sourceKind uint8

const (
	noSource sourceKind = iota
	copySource
	renameSource
)

// entry is one operation: all there is to know of it before a request comes.
type entry struct {
	name   string
	method string
	level  level
	by     string // the subresources that select it, all of them present
	takes  string // further query parameters it may have
	source sourceKind

	headers string // what it may carry besides Origin
	meta    bool   // and x-amz-meta-*
	body    bool

	needs     string  // IAM actions on what it is addressed to
	versioned string  // the same where a version is named; "" = needs
	extras    []extra // actions that headers add

	unsupported string // why it answers 501

	// What compile makes of the above.
	required, allowed paramSet
	headerSet         headerSet
	flags             []param // required ones whose value the table knows: acl=, list-type=2
	actions           []string
	versionedActions  []string
}

// extra is what a header makes an operation need besides.
type extra struct {
	header  string
	actions []string
	id      headerID
}

// Groups of headers that go together.
const (
	owner = "x-amz-expected-bucket-owner "
	payer = "x-amz-request-payer "

	checksumValues = "x-amz-checksum-crc32 x-amz-checksum-crc32c x-amz-checksum-crc64nvme x-amz-checksum-md5 x-amz-checksum-sha1 " +
		"x-amz-checksum-sha256 x-amz-checksum-sha512 x-amz-checksum-xxhash128 x-amz-checksum-xxhash3 x-amz-checksum-xxhash64 "
	checksummed = "x-amz-sdk-checksum-algorithm " + checksumValues // operations that S3 can hold to a checksum of the client's choice

	customerKey = "x-amz-server-side-encryption-customer-algorithm x-amz-server-side-encryption-customer-key " +
		"x-amz-server-side-encryption-customer-key-md5 "
	sourceCustomerKey = "x-amz-copy-source-server-side-encryption-customer-algorithm x-amz-copy-source-server-side-encryption-customer-key " +
		"x-amz-copy-source-server-side-encryption-customer-key-md5 "
	serviceKey = "x-amz-server-side-encryption x-amz-server-side-encryption-aws-kms-key-id x-amz-server-side-encryption-bucket-key-enabled " +
		"x-amz-server-side-encryption-context "

	objectACL = "x-amz-acl x-amz-grant-full-control x-amz-grant-read x-amz-grant-read-acp x-amz-grant-write-acp "
	bucketACL = objectACL + "x-amz-grant-write "

	objectLock = "x-amz-object-lock-event-hold x-amz-object-lock-event-hold-duration-days x-amz-object-lock-event-hold-duration-years " +
		"x-amz-object-lock-legal-hold x-amz-object-lock-mode x-amz-object-lock-retain-until-date "

	// What every way of making an object may say of it.
	stored = owner + payer + objectACL + objectLock + customerKey + serviceKey +
		"cache-control content-disposition content-encoding content-language content-type expires " +
		"x-amz-storage-class x-amz-tagging x-amz-website-redirect-location "

	ifETag    = "if-match if-none-match "
	ifAny     = ifETag + "if-modified-since if-unmodified-since "
	copyIf    = "x-amz-copy-source-if-match x-amz-copy-source-if-modified-since x-amz-copy-source-if-none-match x-amz-copy-source-if-unmodified-since "
	copyOwner = "x-amz-source-expected-bucket-owner "
	renameIf  = "x-amz-rename-source-if-match x-amz-rename-source-if-modified-since x-amz-rename-source-if-none-match x-amz-rename-source-if-unmodified-since "

	overrides = "response-cache-control response-content-disposition response-content-encoding response-content-language response-content-type response-expires "
	paged     = "delimiter encoding-type prefix "
)

func adds(actions string, headers string) []extra {
	var extras []extra
	for _, h := range strings.Fields(headers) {
		extras = append(extras, extra{header: h, actions: strings.Fields(actions)})
	}
	return extras
}

var (
	objectExtras = slices.Concat(
		adds("s3:PutObjectAcl", objectACL),
		adds("s3:PutObjectTagging", "x-amz-tagging"),
		adds("s3:PutObjectRetention", "x-amz-object-lock-mode x-amz-object-lock-retain-until-date x-amz-object-lock-event-hold "+
			"x-amz-object-lock-event-hold-duration-days x-amz-object-lock-event-hold-duration-years"),
		adds("s3:PutObjectLegalHold", "x-amz-object-lock-legal-hold"),
	)
	bucketExtras = slices.Concat(
		adds("s3:PutBucketAcl", bucketACL),
		adds("s3:PutBucketObjectLockConfiguration s3:PutBucketVersioning", "x-amz-bucket-object-lock-enabled"),
		adds("s3:PutBucketOwnershipControls", "x-amz-object-ownership"),
	)
	bypassExtras = adds("s3:BypassGovernanceRetention", "x-amz-bypass-governance-retention")
)

const (
	directoryBuckets = "directory buckets have sessions, endpoints and signatures of their own"
	objectLambda     = "it answers an Object Lambda's caller over a host of its own"
)

// table is every operation of S3, and the only thing that a request can be. Two entries must never match the same
// request: compile panics on a pair that could.
//
// Operations, parameters and headers are those of AWS's model of S3; actions those of its Service Authorization
// Reference.
var table = []entry{
	{name: "ListBuckets", method: "GET", level: service, takes: "bucket-region continuation-token max-buckets prefix", needs: "s3:ListAllMyBuckets"},
	{name: "ListDirectoryBuckets", method: "GET", level: service, by: "max-directory-buckets", takes: "continuation-token", needs: "s3express:ListAllMyDirectoryBuckets", unsupported: directoryBuckets},

	// The bucket itself.
	{name: "CreateBucket", method: "PUT", level: bucket, body: true, headers: bucketACL + "x-amz-bucket-namespace x-amz-bucket-object-lock-enabled x-amz-object-ownership", needs: "s3:CreateBucket", extras: bucketExtras},
	{name: "DeleteBucket", method: "DELETE", level: bucket, headers: owner, needs: "s3:DeleteBucket"},
	{name: "HeadBucket", method: "HEAD", level: bucket, headers: owner, needs: "s3:ListBucket"},
	{name: "CreateSession", method: "GET", level: bucket, by: "session", headers: serviceKey + "x-amz-create-session-mode", needs: "s3express:CreateSession", unsupported: directoryBuckets},

	// What is in it.
	{name: "ListObjects", method: "GET", level: bucket, takes: paged + "marker max-keys", headers: owner + payer + "x-amz-optional-object-attributes", needs: "s3:ListBucket"},
	{name: "ListObjectsV2", method: "GET", level: bucket, by: "list-type", takes: paged + "continuation-token fetch-owner max-keys start-after", headers: owner + payer + "x-amz-optional-object-attributes", needs: "s3:ListBucket"},
	{name: "ListObjectVersions", method: "GET", level: bucket, by: "versions", takes: paged + "key-marker max-keys version-id-marker", headers: owner + payer + "x-amz-optional-object-attributes", needs: "s3:ListBucketVersions"},
	{name: "ListMultipartUploads", method: "GET", level: bucket, by: "uploads", takes: paged + "key-marker max-uploads upload-id-marker", headers: owner + payer, needs: "s3:ListBucketMultipartUploads"},
	{name: "DeleteObjects", method: "POST", level: bucket, by: "delete", body: true, headers: owner + payer + checksummed + "x-amz-bypass-governance-retention x-amz-mfa", needs: "s3:DeleteObject", extras: bypassExtras},

	// Its configuration.
	{name: "GetBucketAbac", method: "GET", level: bucket, by: "abac", headers: owner, needs: "s3:GetBucketAbac"},
	{name: "PutBucketAbac", method: "PUT", level: bucket, by: "abac", body: true, headers: owner + checksummed, needs: "s3:PutBucketAbac"},
	{name: "GetBucketAccelerateConfiguration", method: "GET", level: bucket, by: "accelerate", headers: owner + payer, needs: "s3:GetAccelerateConfiguration"},
	{name: "PutBucketAccelerateConfiguration", method: "PUT", level: bucket, by: "accelerate", body: true, headers: owner + checksummed, needs: "s3:PutAccelerateConfiguration"},
	{name: "GetBucketAcl", method: "GET", level: bucket, by: "acl", headers: owner, needs: "s3:GetBucketAcl"},
	{name: "PutBucketAcl", method: "PUT", level: bucket, by: "acl", body: true, headers: owner + checksummed + bucketACL, needs: "s3:PutBucketAcl"},
	{name: "ListBucketAnalyticsConfigurations", method: "GET", level: bucket, by: "analytics", takes: "continuation-token", headers: owner, needs: "s3:GetAnalyticsConfiguration"},
	{name: "GetBucketAnalyticsConfiguration", method: "GET", level: bucket, by: "analytics id", headers: owner, needs: "s3:GetAnalyticsConfiguration"},
	{name: "PutBucketAnalyticsConfiguration", method: "PUT", level: bucket, by: "analytics id", body: true, headers: owner, needs: "s3:PutAnalyticsConfiguration"},
	{name: "DeleteBucketAnalyticsConfiguration", method: "DELETE", level: bucket, by: "analytics id", headers: owner, needs: "s3:PutAnalyticsConfiguration"},
	{name: "GetBucketCors", method: "GET", level: bucket, by: "cors", headers: owner, needs: "s3:GetBucketCORS"},
	{name: "PutBucketCors", method: "PUT", level: bucket, by: "cors", body: true, headers: owner + checksummed, needs: "s3:PutBucketCORS"},
	{name: "DeleteBucketCors", method: "DELETE", level: bucket, by: "cors", headers: owner, needs: "s3:PutBucketCORS"},
	{name: "GetBucketEncryption", method: "GET", level: bucket, by: "encryption", headers: owner, needs: "s3:GetEncryptionConfiguration"},
	{name: "PutBucketEncryption", method: "PUT", level: bucket, by: "encryption", body: true, headers: owner + checksummed, needs: "s3:PutEncryptionConfiguration"},
	{name: "DeleteBucketEncryption", method: "DELETE", level: bucket, by: "encryption", headers: owner, needs: "s3:PutEncryptionConfiguration"},
	{name: "ListBucketIntelligentTieringConfigurations", method: "GET", level: bucket, by: "intelligent-tiering", takes: "continuation-token", headers: owner, needs: "s3:GetIntelligentTieringConfiguration"},
	{name: "GetBucketIntelligentTieringConfiguration", method: "GET", level: bucket, by: "intelligent-tiering id", headers: owner, needs: "s3:GetIntelligentTieringConfiguration"},
	{name: "PutBucketIntelligentTieringConfiguration", method: "PUT", level: bucket, by: "intelligent-tiering id", body: true, headers: owner, needs: "s3:PutIntelligentTieringConfiguration"},
	{name: "DeleteBucketIntelligentTieringConfiguration", method: "DELETE", level: bucket, by: "intelligent-tiering id", headers: owner, needs: "s3:PutIntelligentTieringConfiguration"},
	{name: "ListBucketInventoryConfigurations", method: "GET", level: bucket, by: "inventory", takes: "continuation-token", headers: owner, needs: "s3:GetInventoryConfiguration"},
	{name: "GetBucketInventoryConfiguration", method: "GET", level: bucket, by: "inventory id", headers: owner, needs: "s3:GetInventoryConfiguration"},
	{name: "PutBucketInventoryConfiguration", method: "PUT", level: bucket, by: "inventory id", body: true, headers: owner, needs: "s3:PutInventoryConfiguration"},
	{name: "DeleteBucketInventoryConfiguration", method: "DELETE", level: bucket, by: "inventory id", headers: owner, needs: "s3:PutInventoryConfiguration"},
	// minio-go always asks for MinIO's time of change here, which S3 ignores and policy has no interest in.
	{name: "GetBucketLifecycleConfiguration", method: "GET", level: bucket, by: "lifecycle", takes: "withUpdatedAt", headers: owner, needs: "s3:GetLifecycleConfiguration"},
	{name: "PutBucketLifecycleConfiguration", method: "PUT", level: bucket, by: "lifecycle", body: true, headers: owner + checksummed + "x-amz-transition-default-minimum-object-size", needs: "s3:PutLifecycleConfiguration"},
	{name: "DeleteBucketLifecycle", method: "DELETE", level: bucket, by: "lifecycle", headers: owner, needs: "s3:PutLifecycleConfiguration"},
	{name: "GetBucketLocation", method: "GET", level: bucket, by: "location", headers: owner, needs: "s3:GetBucketLocation"},
	{name: "GetBucketLogging", method: "GET", level: bucket, by: "logging", headers: owner, needs: "s3:GetBucketLogging"},
	{name: "PutBucketLogging", method: "PUT", level: bucket, by: "logging", body: true, headers: owner + checksummed, needs: "s3:PutBucketLogging"},
	{name: "CreateBucketMetadataConfiguration", method: "POST", level: bucket, by: "metadataConfiguration", body: true, headers: owner + checksummed, needs: "s3:CreateBucketMetadataTableConfiguration"},
	{name: "GetBucketMetadataConfiguration", method: "GET", level: bucket, by: "metadataConfiguration", headers: owner, needs: "s3:GetBucketMetadataTableConfiguration"},
	{name: "DeleteBucketMetadataConfiguration", method: "DELETE", level: bucket, by: "metadataConfiguration", headers: owner, needs: "s3:DeleteBucketMetadataTableConfiguration"},
	{name: "CreateBucketMetadataTableConfiguration", method: "POST", level: bucket, by: "metadataTable", body: true, headers: owner + checksummed, needs: "s3:CreateBucketMetadataTableConfiguration"},
	{name: "GetBucketMetadataTableConfiguration", method: "GET", level: bucket, by: "metadataTable", headers: owner, needs: "s3:GetBucketMetadataTableConfiguration"},
	{name: "DeleteBucketMetadataTableConfiguration", method: "DELETE", level: bucket, by: "metadataTable", headers: owner, needs: "s3:DeleteBucketMetadataTableConfiguration"},
	{name: "UpdateBucketMetadataAnnotationTableConfiguration", method: "PUT", level: bucket, by: "metadataAnnotationTable", body: true, headers: owner + checksummed, needs: "s3:UpdateBucketMetadataAnnotationTableConfiguration"},
	{name: "UpdateBucketMetadataInventoryTableConfiguration", method: "PUT", level: bucket, by: "metadataInventoryTable", body: true, headers: owner + checksummed, needs: "s3:UpdateBucketMetadataInventoryTableConfiguration"},
	{name: "UpdateBucketMetadataJournalTableConfiguration", method: "PUT", level: bucket, by: "metadataJournalTable", body: true, headers: owner + checksummed, needs: "s3:UpdateBucketMetadataJournalTableConfiguration"},
	{name: "ListBucketMetricsConfigurations", method: "GET", level: bucket, by: "metrics", takes: "continuation-token", headers: owner, needs: "s3:GetMetricsConfiguration"},
	{name: "GetBucketMetricsConfiguration", method: "GET", level: bucket, by: "metrics id", headers: owner, needs: "s3:GetMetricsConfiguration"},
	{name: "PutBucketMetricsConfiguration", method: "PUT", level: bucket, by: "metrics id", body: true, headers: owner, needs: "s3:PutMetricsConfiguration"},
	{name: "DeleteBucketMetricsConfiguration", method: "DELETE", level: bucket, by: "metrics id", headers: owner, needs: "s3:PutMetricsConfiguration"},
	{name: "GetBucketNotificationConfiguration", method: "GET", level: bucket, by: "notification", headers: owner, needs: "s3:GetBucketNotification"},
	{name: "PutBucketNotificationConfiguration", method: "PUT", level: bucket, by: "notification", body: true, headers: owner + "x-amz-skip-destination-validation", needs: "s3:PutBucketNotification"},
	{name: "GetObjectLockConfiguration", method: "GET", level: bucket, by: "object-lock", headers: owner, needs: "s3:GetBucketObjectLockConfiguration"},
	{name: "PutObjectLockConfiguration", method: "PUT", level: bucket, by: "object-lock", body: true, headers: owner + payer + checksummed + "x-amz-bucket-object-lock-token", needs: "s3:PutBucketObjectLockConfiguration"},
	{name: "GetBucketOwnershipControls", method: "GET", level: bucket, by: "ownershipControls", headers: owner, needs: "s3:GetBucketOwnershipControls"},
	{name: "PutBucketOwnershipControls", method: "PUT", level: bucket, by: "ownershipControls", body: true, headers: owner + checksummed, needs: "s3:PutBucketOwnershipControls"},
	{name: "DeleteBucketOwnershipControls", method: "DELETE", level: bucket, by: "ownershipControls", headers: owner, needs: "s3:PutBucketOwnershipControls"},
	{name: "GetBucketPolicy", method: "GET", level: bucket, by: "policy", headers: owner, needs: "s3:GetBucketPolicy"},
	{name: "PutBucketPolicy", method: "PUT", level: bucket, by: "policy", body: true, headers: owner + checksummed + "x-amz-confirm-remove-self-bucket-access", needs: "s3:PutBucketPolicy"},
	{name: "DeleteBucketPolicy", method: "DELETE", level: bucket, by: "policy", headers: owner, needs: "s3:DeleteBucketPolicy"},
	{name: "GetBucketPolicyStatus", method: "GET", level: bucket, by: "policyStatus", headers: owner, needs: "s3:GetBucketPolicyStatus"},
	{name: "GetPublicAccessBlock", method: "GET", level: bucket, by: "publicAccessBlock", headers: owner, needs: "s3:GetBucketPublicAccessBlock"},
	{name: "PutPublicAccessBlock", method: "PUT", level: bucket, by: "publicAccessBlock", body: true, headers: owner + checksummed, needs: "s3:PutBucketPublicAccessBlock"},
	{name: "DeletePublicAccessBlock", method: "DELETE", level: bucket, by: "publicAccessBlock", headers: owner, needs: "s3:PutBucketPublicAccessBlock"},
	{name: "GetBucketReplication", method: "GET", level: bucket, by: "replication", headers: owner, needs: "s3:GetReplicationConfiguration"},
	{name: "PutBucketReplication", method: "PUT", level: bucket, by: "replication", body: true, headers: owner + checksummed + "x-amz-bucket-object-lock-token", needs: "s3:PutReplicationConfiguration"},
	{name: "DeleteBucketReplication", method: "DELETE", level: bucket, by: "replication", headers: owner, needs: "s3:PutReplicationConfiguration"},
	{name: "GetBucketRequestPayment", method: "GET", level: bucket, by: "requestPayment", headers: owner, needs: "s3:GetBucketRequestPayment"},
	{name: "PutBucketRequestPayment", method: "PUT", level: bucket, by: "requestPayment", body: true, headers: owner + checksummed, needs: "s3:PutBucketRequestPayment"},
	{name: "GetBucketTagging", method: "GET", level: bucket, by: "tagging", headers: owner, needs: "s3:GetBucketTagging"},
	{name: "PutBucketTagging", method: "PUT", level: bucket, by: "tagging", body: true, headers: owner + checksummed, needs: "s3:PutBucketTagging"},
	{name: "DeleteBucketTagging", method: "DELETE", level: bucket, by: "tagging", headers: owner, needs: "s3:PutBucketTagging"},
	{name: "GetBucketVersioning", method: "GET", level: bucket, by: "versioning", headers: owner, needs: "s3:GetBucketVersioning"},
	{name: "PutBucketVersioning", method: "PUT", level: bucket, by: "versioning", body: true, headers: owner + checksummed + "x-amz-mfa", needs: "s3:PutBucketVersioning"},
	{name: "GetBucketWebsite", method: "GET", level: bucket, by: "website", headers: owner, needs: "s3:GetBucketWebsite"},
	{name: "PutBucketWebsite", method: "PUT", level: bucket, by: "website", body: true, headers: owner + checksummed, needs: "s3:PutBucketWebsite"},
	{name: "DeleteBucketWebsite", method: "DELETE", level: bucket, by: "website", headers: owner, needs: "s3:DeleteBucketWebsite"},

	// Objects, whole.
	{name: "GetObject", method: "GET", level: object, takes: overrides + "partNumber versionId", headers: owner + payer + customerKey + ifAny + "if-range range x-amz-checksum-mode", needs: "s3:GetObject", versioned: "s3:GetObjectVersion"},
	{name: "HeadObject", method: "HEAD", level: object, takes: overrides + "partNumber versionId", headers: owner + payer + customerKey + ifAny + "if-range range x-amz-checksum-mode", needs: "s3:GetObject", versioned: "s3:GetObjectVersion"},
	{name: "PutObject", method: "PUT", level: object, body: true, meta: true, headers: stored + checksummed + ifETag + "x-amz-write-offset-bytes", needs: "s3:PutObject", extras: objectExtras},
	{name: "CopyObject", method: "PUT", level: object, source: copySource, meta: true, headers: stored + sourceCustomerKey + copyIf + copyOwner + ifETag + "x-amz-checksum-algorithm x-amz-metadata-directive x-amz-object-annotation-directive x-amz-tagging-directive", needs: "s3:PutObject", extras: objectExtras},
	{name: "RenameObject", method: "PUT", level: object, by: "renameObject", source: renameSource, headers: ifAny + renameIf + "x-amz-client-token", needs: "s3:PutObject"},
	{name: "DeleteObject", method: "DELETE", level: object, takes: "versionId", headers: owner + payer + "if-match x-amz-bypass-governance-retention x-amz-if-match-last-modified-time x-amz-if-match-size x-amz-mfa", needs: "s3:DeleteObject", versioned: "s3:DeleteObjectVersion", extras: bypassExtras},
	{name: "RestoreObject", method: "POST", level: object, by: "restore", takes: "versionId", body: true, headers: owner + payer + checksummed, needs: "s3:RestoreObject"},
	{name: "SelectObjectContent", method: "POST", level: object, by: "select select-type", body: true, headers: owner + customerKey, needs: "s3:GetObject"},
	{name: "GetObjectTorrent", method: "GET", level: object, by: "torrent", headers: owner + payer, needs: "s3:GetObjectTorrent"},
	{name: "UpdateObjectEncryption", method: "PUT", level: object, by: "encryption", takes: "versionId", body: true, headers: owner + payer + checksummed, needs: "s3:PutObject s3:UpdateObjectEncryption"},
	{name: "WriteGetObjectResponse", method: "POST", level: bucket, needs: "s3-object-lambda:WriteGetObjectResponse", unsupported: objectLambda},

	// Objects, in parts.
	{name: "CreateMultipartUpload", method: "POST", level: object, by: "uploads", meta: true, headers: stored + "x-amz-checksum-algorithm x-amz-checksum-type", needs: "s3:PutObject", extras: objectExtras},
	{name: "UploadPart", method: "PUT", level: object, by: "partNumber uploadId", body: true, headers: owner + payer + customerKey + checksummed, needs: "s3:PutObject"},
	{name: "UploadPartCopy", method: "PUT", level: object, by: "partNumber uploadId", source: copySource, headers: owner + payer + customerKey + sourceCustomerKey + copyIf + copyOwner + "x-amz-copy-source-range", needs: "s3:PutObject"},
	{name: "CompleteMultipartUpload", method: "POST", level: object, by: "uploadId", body: true, headers: owner + payer + customerKey + checksumValues + ifETag + "x-amz-checksum-type x-amz-mp-object-size", needs: "s3:PutObject"},
	{name: "AbortMultipartUpload", method: "DELETE", level: object, by: "uploadId", headers: owner + payer + "x-amz-if-match-initiated-time", needs: "s3:AbortMultipartUpload"},
	{name: "ListParts", method: "GET", level: object, by: "uploadId", takes: "max-parts part-number-marker", headers: owner + payer + customerKey, needs: "s3:ListMultipartUploadParts"},

	// What is said about objects.
	{name: "GetObjectAcl", method: "GET", level: object, by: "acl", takes: "versionId", headers: owner + payer, needs: "s3:GetObjectAcl", versioned: "s3:GetObjectVersionAcl"},
	{name: "PutObjectAcl", method: "PUT", level: object, by: "acl", takes: "versionId", body: true, headers: owner + payer + checksummed + bucketACL, needs: "s3:PutObjectAcl", versioned: "s3:PutObjectVersionAcl"},
	{name: "ListObjectAnnotations", method: "GET", level: object, by: "annotation", takes: "annotation-prefix continuation-token max-annotation-results versionId", headers: owner + payer, needs: "s3:ListObjectAnnotations", versioned: "s3:ListObjectVersionAnnotations"},
	{name: "GetObjectAnnotation", method: "GET", level: object, by: "annotation annotationName", takes: "versionId", headers: owner + payer + "x-amz-checksum-mode", needs: "s3:GetObjectAnnotation", versioned: "s3:GetObjectVersionAnnotation"},
	{name: "PutObjectAnnotation", method: "PUT", level: object, by: "annotation annotationName", takes: "versionId", body: true, headers: owner + payer + checksummed + "x-amz-object-if-match", needs: "s3:PutObjectAnnotation", versioned: "s3:PutObjectVersionAnnotation"},
	{name: "DeleteObjectAnnotation", method: "DELETE", level: object, by: "annotation annotationName", takes: "versionId", headers: owner + payer + "x-amz-object-if-match", needs: "s3:DeleteObjectAnnotation", versioned: "s3:DeleteObjectVersionAnnotation"},
	{name: "GetObjectAttributes", method: "GET", level: object, by: "attributes", takes: "versionId", headers: owner + payer + customerKey + "x-amz-max-parts x-amz-object-attributes x-amz-part-number-marker", needs: "s3:GetObject s3:GetObjectAttributes", versioned: "s3:GetObjectVersion s3:GetObjectVersionAttributes"},
	{name: "GetObjectLegalHold", method: "GET", level: object, by: "legal-hold", takes: "versionId", headers: owner + payer, needs: "s3:GetObjectLegalHold"},
	{name: "PutObjectLegalHold", method: "PUT", level: object, by: "legal-hold", takes: "versionId", body: true, headers: owner + payer + checksummed, needs: "s3:PutObjectLegalHold"},
	{name: "GetObjectRetention", method: "GET", level: object, by: "retention", takes: "versionId", headers: owner + payer, needs: "s3:GetObjectRetention"},
	{name: "PutObjectRetention", method: "PUT", level: object, by: "retention", takes: "versionId", body: true, headers: owner + payer + checksummed + "x-amz-bypass-governance-retention", needs: "s3:PutObjectRetention", extras: bypassExtras},
	{name: "GetObjectTagging", method: "GET", level: object, by: "tagging", takes: "versionId", headers: owner + payer, needs: "s3:GetObjectTagging", versioned: "s3:GetObjectVersionTagging"},
	{name: "PutObjectTagging", method: "PUT", level: object, by: "tagging", takes: "versionId", body: true, headers: owner + payer + checksummed, needs: "s3:PutObjectTagging", versioned: "s3:PutObjectVersionTagging"},
	{name: "DeleteObjectTagging", method: "DELETE", level: object, by: "tagging", takes: "versionId", headers: owner, needs: "s3:DeleteObjectTagging", versioned: "s3:DeleteObjectVersionTagging"},

	// What browsers ask before they ask. Not of the model, and not signed: see Operation.Preflight.
	{name: preflight, method: "OPTIONS", level: bucket, headers: preflightHeaders, needs: "s3:PreflightRequest"},
	{name: preflight, method: "OPTIONS", level: object, headers: preflightHeaders, needs: "s3:PreflightRequest"},
}

const (
	preflight        = "PreflightRequest"
	preflightHeaders = "access-control-request-headers access-control-request-method"
)

// methods are those that the table has entries for.
const (
	get = iota
	head
	put
	post
	del
	options
	methods
)

func methodIndex(m string) int {
	switch m {
	case "GET":
		return get
	case "HEAD":
		return head
	case "PUT":
		return put
	case "POST":
		return post
	case "DELETE":
		return del
	case "OPTIONS":
		return options
	}
	return -1
}

var (
	byMethod [methods][object + 1][]*entry
	byName   = map[string]*entry{}
)

func init() {
	for i := range table {
		e := &table[i]
		e.compile()
		if byName[e.name] == nil {
			byName[e.name] = e
		}
		if e.name == "WriteGetObjectResponse" {
			continue // told by its headers and nothing else: see find
		}
		peers := &byMethod[methodIndex(e.method)][e.level]
		for _, p := range *peers {
			if p.source == e.source && p.required.within(e.allowed) && e.required.within(p.allowed) {
				panic(fmt.Sprintf("s3wire: a request could be %s or %s", p.name, e.name))
			}
		}
		*peers = append(*peers, e)
	}
}

func (e *entry) compile() {
	for _, name := range strings.Fields(e.by) {
		id := mustParam(name)
		e.required.add(id)
		if value, ok := paramNames[id].fixed(); ok {
			e.flags = append(e.flags, param{id, value})
		}
	}
	e.allowed = e.required
	for _, name := range strings.Fields(e.takes) {
		e.allowed.add(mustParam(name))
	}
	for _, name := range strings.Fields(e.headers) {
		e.headerSet.add(mustHeader(name))
	}
	e.headerSet.add(mustHeader("origin"))
	if e.body {
		// Every body has a type and may have a digest, whatever the model says.
		e.headerSet.add(mustHeader("content-type"))
		e.headerSet.add(mustHeader("content-md5"))
	}
	switch e.source {
	case copySource:
		e.headerSet.add(mustHeader("x-amz-copy-source"))
	case renameSource:
		e.headerSet.add(mustHeader("x-amz-rename-source"))
	}
	e.actions = strings.Fields(e.needs)
	e.versionedActions = strings.Fields(e.versioned)
	if e.versioned == "" {
		e.versionedActions = e.actions
	}
	if len(e.actions) == 0 || len(e.actions) != len(e.versionedActions) {
		panic("s3wire: " + e.name + " needs nothing")
	}
	e.extras = slices.Clone(e.extras)
	for i := range e.extras {
		e.extras[i].id = mustHeader(e.extras[i].header)
		if !e.headerSet.has(e.extras[i].id) {
			panic("s3wire: " + e.name + " has no " + e.extras[i].header)
		}
	}
}

// Info is what the table says of one operation, for documentation and for tools that explain decisions.
type Info struct {
	Name      string
	Method    string
	Level     string   // "service", "bucket" or "object"
	Selected  []string // the query parameters, and the header where one does, that make a request this operation
	Query     []string // the further parameters it may have
	Headers   []string // lower case; "x-amz-meta-*" stands for user metadata
	Body      bool
	Actions   []string // what it needs on what it is addressed to
	Versioned []string // the same where the request names a version
	Why       string   // it is not supported; "" = it is
}

// Operations is the whole table, in the order of the documentation.
func Operations() []Info {
	var all []Info
	for i := range table {
		e := &table[i]
		info := Info{
			Name: e.name, Method: e.method, Level: e.level.String(), Selected: strings.Fields(e.by), Query: strings.Fields(e.takes),
			Body: e.body, Actions: slices.Clone(e.actions), Versioned: slices.Clone(e.versionedActions), Why: e.unsupported,
		}
		for id := range headerNames {
			if e.headerSet.has(headerID(id)) {
				info.Headers = append(info.Headers, headerNames[id].lower)
			}
		}
		if e.meta {
			info.Headers = append(info.Headers, "x-amz-meta-*")
		}
		switch e.source {
		case copySource:
			info.Selected = append(info.Selected, "x-amz-copy-source")
		case renameSource:
			info.Selected = append(info.Selected, "x-amz-rename-source")
		}
		all = append(all, info)
	}
	return all
}
