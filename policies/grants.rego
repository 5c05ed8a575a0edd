# Grants as data: a project may be let into folders that are not its own. grants.yaml holds them by project, then
# bucket, then folder: each step is one look-up, so that 5,000 grants cost what 5 do. A list that is searched
# ("some grant in data.grants; grant.project == …") would cost more with every grant.
package s3.authz

may_visit if granted[input.bucket]

may_list if granted[input.bucket][folder(input.prefix)]

may_read if granted[input.bucket][folder(input.key)]

may_write if granted[input.bucket][folder(input.key)] == "write"

may_delete if granted[input.bucket][folder(input.key)] == "write"

granted := data.grants[input.identity.attributes.project]

# "web" of "web/2026/x". What is in no folder has none.
folder(path) := name if {
	[name, _] := strings.split_n(path, "/", 2)
}
