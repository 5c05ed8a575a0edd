# Administrators: everything, in every bucket. The group must come from an issuer that you trust with that: a
# group of the same name from another issuer is another group.
package s3.authz

allow if {
	some group in input.identity.attributes.groups
	data.admins[input.identity.issuer][group]
}
