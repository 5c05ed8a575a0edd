# The AWS side of Sluice: who it is, the role that workspaces act as, and a bucket that admits nobody else.
# docs/aws-setup.md says why each statement is there.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  account = data.aws_caller_identity.current.account_id
  arn     = "arn:${data.aws_partition.current.partition}"
  prefix  = "${local.arn}:iam::${local.account}:role/${var.name}-"
}

# Sluice itself. Where it runs gives it this role; the role may do nothing but assume the workspaces' roles.
resource "aws_iam_role" "sluice" {
  name               = var.name
  assume_role_policy = data.aws_iam_policy_document.runs_as.json
}

data "aws_iam_policy_document" "runs_as" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = [var.runs_on] # ec2.amazonaws.com, ecs-tasks.amazonaws.com, pods.eks.amazonaws.com
    }
  }
}

resource "aws_iam_role_policy" "sluice" {
  name   = "assume-workspace-roles"
  role   = aws_iam_role.sluice.id
  policy = data.aws_iam_policy_document.sluice.json
}

data "aws_iam_policy_document" "sluice" {
  statement {
    actions   = ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"]
    resources = ["${local.prefix}*"]
  }
}

# What workspaces act as: one role for all projects, each held to its own prefix by the session tag that Sluice sets.
resource "aws_iam_role" "workspaces" {
  name                 = "${var.name}-workspaces"
  assume_role_policy   = data.aws_iam_policy_document.trust_sluice.json
  max_session_duration = 3600 # a role that is assumed by a role gets no more
}

data "aws_iam_policy_document" "trust_sluice" {
  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]
    principals {
      type        = "AWS"
      identifiers = [aws_iam_role.sluice.arn]
    }
    condition { # never without the tag, by whoever
      test     = "StringLike"
      variable = "aws:RequestTag/project"
      values   = ["?*"]
    }
    condition { # and without any other
      test     = "ForAllValues:StringEquals"
      variable = "aws:TagKeys"
      values   = ["project"]
    }
  }
  statement {
    actions = ["sts:SetSourceIdentity"]
    principals {
      type        = "AWS"
      identifiers = [aws_iam_role.sluice.arn]
    }
  }
}

resource "aws_iam_role_policy" "workspaces" {
  name   = "own-prefix"
  role   = aws_iam_role.workspaces.id
  policy = data.aws_iam_policy_document.workspaces.json
}

data "aws_iam_policy_document" "workspaces" {
  statement {
    actions = ["s3:GetObject", "s3:GetObjectVersion", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    # "$${…}" is for IAM: it puts the session's tag there.
    resources = ["${aws_s3_bucket.artifacts.arn}/$${aws:PrincipalTag/project}/*"]
  }
  statement {
    actions   = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.artifacts.arn]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["$${aws:PrincipalTag/project}/*"]
    }
  }
  statement {
    actions   = ["s3:GetBucketLocation"]
    resources = [aws_s3_bucket.artifacts.arn]
  }
}

resource "aws_s3_bucket" "artifacts" {
  bucket = var.bucket
}

resource "aws_s3_bucket_public_access_block" "artifacts" {
  bucket                  = aws_s3_bucket.artifacts.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

# Only sessions that Sluice's roles made get at the objects, whatever IAM elsewhere in the account allows.
resource "aws_s3_bucket_policy" "artifacts" {
  bucket     = aws_s3_bucket.artifacts.id
  policy     = data.aws_iam_policy_document.only_sluice.json
  depends_on = [aws_s3_bucket_public_access_block.artifacts]
}

data "aws_iam_policy_document" "only_sluice" {
  statement {
    sid       = "OnlyThroughSluice"
    effect    = "Deny"
    actions   = ["s3:*Object*", "s3:ListBucket*", "s3:ListMultipartUploadParts", "s3:AbortMultipartUpload"]
    resources = [aws_s3_bucket.artifacts.arn, "${aws_s3_bucket.artifacts.arn}/*"]
    principals {
      type        = "*"
      identifiers = ["*"]
    }
    # aws:PrincipalArn is the role's own ARN, whatever its session is called. Bucket administration is left alone, and so
    # are the roles in var.also: a lifecycle or backup role, and one to break the glass with.
    condition {
      test     = "ArnNotLike"
      variable = "aws:PrincipalArn"
      values   = concat(["${local.prefix}*"], var.also)
    }
    condition { # S3's own: replication, inventory, logging
      test     = "BoolIfExists"
      variable = "aws:PrincipalIsAWSService"
      values   = ["false"]
    }
  }
  statement {
    sid       = "OnlyByTLS"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.artifacts.arn, "${aws_s3_bucket.artifacts.arn}/*"]
    principals {
      type        = "*"
      identifiers = ["*"]
    }
    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}
