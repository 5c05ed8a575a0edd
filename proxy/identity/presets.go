package identity

import "slices"

// attributeClaims says by which claim an issuer tells each attribute. Of several the first that a token has is taken.
type attributeClaims struct {
	workspace, project, repository, user, groups []string
}

// presets are the claims that known issuers publish. docs/identity.md has the source of each; testdata/presets has a
// token of each one's published shape.
//
// A value is passed on as the issuer wrote it. Making, say, a repository's URL and its path alike would let
// https://elsewhere.example/acme/web pass for acme/web.
var presets = map[string]attributeClaims{
	// Claims named as the attributes are, and those of OpenID Connect itself.
	"generic": {
		workspace:  []string{"workspace"},
		project:    []string{"project"},
		repository: []string{"repository"},
		user:       []string{"user", "email", "preferred_username"},
		groups:     []string{"groups"},
	},
	// Ona, formerly Gitpod: tokens of version 3.
	"ona": {
		workspace:  []string{"environment_id"},
		project:    []string{"project_id"},
		repository: []string{"environment_initializers.0.git.remote_uri", "environment_initializers.0.context_url"},
		user:       []string{"creator_email", "email", "creator_id"},
		groups:     []string{"creator_idp_claims.groups"},
	},
	// Gitpod Classic, whose tokens name no project.
	"gitpod": {
		workspace:  []string{"workspace_id"},
		repository: []string{"repository"},
		user:       []string{"email", "user_id"},
	},
	// Coder passes on the token of its own identity provider, which knows the user and not the workspace.
	"coder": {
		user:   []string{"email", "preferred_username"},
		groups: []string{"groups"},
	},
	"github": {
		workspace:  []string{"run_id"},
		project:    []string{"repository"},
		repository: []string{"repository"},
		user:       []string{"actor"},
	},
	"gitlab": {
		workspace:  []string{"job_id"},
		project:    []string{"project_path"},
		repository: []string{"project_path"},
		user:       []string{"user_email", "user_login"},
		groups:     []string{"groups_direct"},
	},
	"buildkite": {
		workspace: []string{"job_id"},
		project:   []string{"pipeline_slug"},
	},
	// The uid, for pods of two namespaces may have one name, and so may a pod and its successor.
	"kubernetes": {
		workspace: []string{"kubernetes.io.pod.uid"},
		project:   []string{"kubernetes.io.namespace"},
		user:      []string{"sub"},
	},
}

// with replaces single attributes by those of the configuration.
func (a attributeClaims) with(claims map[string]string) attributeClaims {
	for attribute, claim := range claims {
		switch attribute {
		case "workspace":
			a.workspace = []string{claim}
		case "project":
			a.project = []string{claim}
		case "repository":
			a.repository = []string{claim}
		case "user":
			a.user = []string{claim}
		case "groups":
			a.groups = []string{claim}
		}
	}
	return a
}

// of reads the attributes from a token's claims. What a token does not say is empty.
func (a attributeClaims) of(claims map[string]any) Attributes {
	first := func(paths []string) any {
		for _, path := range paths {
			// An address that its owner has not proved may be anybody's.
			if path == "email" && text(claims["email_verified"]) == "false" {
				continue
			}
			if value := lookup(claims, path); value != nil {
				return value
			}
		}
		return nil
	}
	return Attributes{
		Workspace:  text(first(a.workspace)),
		Project:    text(first(a.project)),
		Repository: text(first(a.repository)),
		User:       text(first(a.user)),
		Groups:     texts(first(a.groups)),
	}
}

// attributeNames are the keys of `attributes`.
var attributeNames = []string{"workspace", "project", "repository", "user", "groups"}

func isAttribute(name string) bool { return slices.Contains(attributeNames, name) }
