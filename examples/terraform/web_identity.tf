# The other way, `web_identity`: AWS verifies the workspace's own token, and Sluice holds no credentials at all. Needs an issuer
# whose keys AWS can fetch. Set var.issuer to make it.

resource "aws_iam_openid_connect_provider" "workspaces" {
  count          = var.issuer == "" ? 0 : 1
  url            = "https://${var.issuer}"
  client_id_list = [var.audience]
}

resource "aws_iam_role" "by_token" {
  count              = var.issuer == "" ? 0 : 1
  name               = "${var.name}-by-token"
  assume_role_policy = data.aws_iam_policy_document.trust_issuer[0].json
}

data "aws_iam_policy_document" "trust_issuer" {
  count = var.issuer == "" ? 0 : 1
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"] # and sts:TagSession where tokens have the claim https://aws.amazon.com/tags
    principals {
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.workspaces[0].arn]
    }
    condition {
      test     = "StringEquals"
      variable = "${var.issuer}:aud"
      values   = [var.audience]
    }
    condition { # an issuer that others use too needs this to be yours alone
      test     = "StringLike"
      variable = "${var.issuer}:sub"
      values   = [var.subjects]
    }
  }
}
