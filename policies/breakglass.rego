# Break-glass: in an emergency the people on call read anything, if they say why. They say it in the role they ask
# for, which any AWS tool can be told:
#
#   AWS_ROLE_ARN=arn:aws:iam::000000000000:role/break-glass/INC-4711
#
# So the session they get is good for this one incident, and the audit log can be searched for it.
package s3.authz

may_visit if breakglass

may_list if breakglass

may_read if breakglass

breakglass if {
	on_call
	regex.match(data.breakglass.reason, said)
}

on_call if data.breakglass.users[input.identity.issuer][input.identity.attributes.user]

said := trim_prefix(input.identity.requested_role, "arn:aws:iam::000000000000:role/break-glass/") if {
	startswith(input.identity.requested_role, "arn:aws:iam::000000000000:role/break-glass/")
}

reasons contains "on call? ask for the role arn:aws:iam::000000000000:role/break-glass/INCIDENT" if {
	on_call
	not breakglass
}
