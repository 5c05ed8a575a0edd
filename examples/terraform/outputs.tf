output "backend" {
  description = "What goes into Sluice's configuration."
  value = yamlencode({
    backends = [{
      name    = "aws"
      buckets = [aws_s3_bucket.artifacts.bucket]
      region  = aws_s3_bucket.artifacts.region
      credentials = {
        assume_role = {
          role_arn        = aws_iam_role.workspaces.arn
          allowed_roles   = ["${local.prefix}*"]
          session_tags    = { project = "{{.Attributes.project}}" }
          source_identity = "{{.Session}}"
        }
      }
    }]
  })
}
