# Data residency: what a project may do elsewhere, it may do only in its regions, and with data of its kinds.
# residency.yaml describes the buckets by region and tags, as your inventory does. This file only ever denies.
package s3.authz

# A project that is kept to regions may not use a bucket of another, or of one that is not known.
deny contains sprintf("%s is in %s: project %s keeps to %s", [input.bucket, region, project, concat(", ", regions)]) if {
	regions := data.residency.projects[project].regions
	input.bucket != ""
	region := object.get(data.residency.buckets, [input.bucket, "region"], "no known region")
	not region in regions
}

deny contains sprintf("%s holds %s data: project %s is not cleared for it", [input.bucket, kind, project]) if {
	kind := data.residency.buckets[input.bucket].tags["data-kind"]
	not cleared(kind)
}

# A rule of its own: `not kind in data.….kinds` would be undefined, and so deny nothing, where a project has none.
cleared(kind) if kind in data.residency.projects[project].kinds

project := input.identity.attributes.project
