package s3.authz_test

import data.s3.authz

open_listings := {"buckets": {"artifacts": true}}

test_listing_is_filtered if {
	authz.allow with input as listing("artifacts", "") with data.listings as open_listings
	authz.filter_listing with input as listing("artifacts", "") with data.listings as open_listings
}

test_listing_opens_no_object if {
	not authz.allow with input as on_key("s3:GetObject", "artifacts", "k") with data.listings as open_listings
}

test_listing_elsewhere if {
	not authz.allow with input as listing("other", "") with data.listings as open_listings
	not authz.filter_listing with input as listing("other", "") with data.listings as open_listings
}
