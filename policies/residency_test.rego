package s3.authz_test

import data.s3.authz

inventory := {
	"buckets": {
		"patients-eu": {"region": "eu-central-1", "tags": {"data-kind": "health"}},
		"cache-eu": {"region": "eu-west-1", "tags": {}},
		"cache-us": {"region": "us-east-1"},
	},
	"projects": {
		"web": {"regions": ["eu-central-1", "eu-west-1"], "kinds": []},
		"clinic": {"regions": ["eu-central-1"], "kinds": ["health"]},
	},
}

test_residency_in_region if {
	count(authz.deny) == 0 with input as on_key("s3:GetObject", "cache-eu", "k") with data.residency as inventory
}

test_residency_elsewhere if {
	authz.deny == {"cache-us is in us-east-1: project web keeps to eu-central-1, eu-west-1"} with input as on_key("s3:GetObject", "cache-us", "k")
		with data.residency as inventory
	authz.deny == {"new is in no known region: project web keeps to eu-central-1, eu-west-1"} with input as listing("new", "")
		with data.residency as inventory
}

test_residency_kinds if {
	authz.deny == {"patients-eu holds health data: project web is not cleared for it"} with input as on_key("s3:GetObject", "patients-eu", "k")
		with data.residency as inventory
	count(authz.deny) == 0 with input as on_key("s3:GetObject", "patients-eu", "k")
		with input.identity.attributes.project as "clinic"
		with data.residency as inventory

	# Nobody is cleared by being unknown.
	count(authz.deny) == 1 with input as on_key("s3:GetObject", "patients-eu", "k")
		with input.identity.attributes.project as "unheard-of"
		with data.residency as inventory
}

test_residency_leaves_others_alone if {
	count(authz.deny) == 0 with input as on_key("s3:GetObject", "cache-us", "k")
		with input.identity.attributes.project as "other"
		with data.residency as inventory
	count(authz.deny) == 0 with input as bucket_call("s3:ListAllMyBuckets", "ListBuckets", "") with data.residency as inventory
}
