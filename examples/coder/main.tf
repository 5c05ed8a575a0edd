# A Coder template: hands the workspace owner's OIDC token to the AWS SDKs. Coder issues no tokens of its own; this one is
# of the identity provider that people log in to Coder with.
terraform {
  required_providers {
    coder = {
      source  = "coder/coder"
      version = ">= 2.0"
    }
  }
}

data "coder_workspace_owner" "me" {}

resource "coder_agent" "main" {
  os   = "linux"
  arch = "amd64"

  env = {
    AWS_ENDPOINT_URL_S3         = "https://s3.example.com"
    AWS_ENDPOINT_URL_STS        = "https://s3.example.com"
    AWS_REGION                  = "eu-west-1"
    AWS_DEFAULT_REGION          = "eu-west-1"                                # what boto3 and the CLI's version 1 read
    AWS_ROLE_ARN                = "arn:aws:iam::123456789012:role/workspace" # any: policy sees it as identity.requested_role
    AWS_WEB_IDENTITY_TOKEN_FILE = "/tmp/sluice-oidc-token"
  }

  # The token is of the moment the workspace started. Coder renews it with each start; where it lives shorter than
  # workspaces do, start them again daily (autostop), or fetch tokens from the identity provider instead.
  startup_script = <<-EOT
    umask 077
    printf '%s' '${data.coder_workspace_owner.me.oidc_access_token}' > "$AWS_WEB_IDENTITY_TOKEN_FILE"
  EOT
}
