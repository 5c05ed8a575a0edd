variable "name" {
  description = "Sluice's own role; the roles that it may assume begin with this and a dash."
  type        = string
  default     = "sluice"
}

variable "runs_on" {
  description = "The service that Sluice runs on, which gives it its role."
  type        = string
  default     = "ec2.amazonaws.com"
}

variable "bucket" {
  description = "The bucket that workspaces share."
  type        = string
}

variable "also" {
  description = "ARNs of other roles that may read and write objects, globs allowed. Leave yourself a way in."
  type        = list(string)
  default     = []
}

variable "issuer" {
  description = "The token issuer without https://, for web_identity; empty = assume_role alone."
  type        = string
  default     = ""
}

variable "audience" {
  description = "The audience of workspaces' tokens."
  type        = string
  default     = "https://s3.example.com"
}

variable "subjects" {
  description = "Pattern of the subjects that may act as the role, for web_identity."
  type        = string
  default     = ""
}
