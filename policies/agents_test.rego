package s3.authz_test

import data.s3.authz

known_by := {"https://app.gitpod.io": {"actor_type": ["agent", "subagent"]}}

# The developer's rights here: all of a bucket.
as_agent(access) := object.union(access, {"identity": object.union(dev, {"claims": {"actor_type": "agent"}})})

test_agent_has_its_developers_rights if {
	every action in {"s3:GetObject", "s3:PutObject"} {
		authz.allow with input as as_agent(on_key(action, "web-cache", "k"))
			with data.agents.known_by as known_by
			with data.buckets as {"web-cache": "web"}
		count(authz.deny) == 0 with input as as_agent(on_key(action, "web-cache", "k"))
			with data.agents.known_by as known_by
	}
}

test_agent_never_deletes if {
	every action in {"s3:DeleteObject", "s3:DeleteObjectVersion", "s3:DeleteBucket", "s3:PutLifecycleConfiguration"} {
		authz.deny == {sprintf("agents may not do %s: ask your developer", [action])} with input as as_agent(on_key(action, "web-cache", "k"))
			with data.agents.known_by as known_by
	}
	authz.deny == {"agents may not rename objects: copy them"} with input as as_agent(on_key("s3:PutObject", "web-cache", "k"))
		with input.operation as "RenameObject"
		with data.agents.known_by as known_by
}

test_agent_limits if {
	authz.limits == {"requests_per_second": 50} with input as as_agent(on_key("s3:GetObject", "web-cache", "k"))
		with data.agents.known_by as known_by
		with data.agents.limits as {"requests_per_second": 50}
	not authz.limits with input as on_key("s3:GetObject", "web-cache", "k")
		with data.agents.known_by as known_by
}

test_agent_people_may_delete if {
	count(authz.deny) == 0 with input as on_key("s3:DeleteObject", "web-cache", "k")
		with data.agents.known_by as known_by
}
