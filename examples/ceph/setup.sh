#!/usr/bin/env bash
# Run where radosgw-admin is. rgw_s3_auth_use_sts must be true and rgw_sts_key 16 characters long:
#   ceph config set client.rgw rgw_s3_auth_use_sts true; ceph config set client.rgw rgw_sts_key "$(openssl rand -hex 8)"
set -euo pipefail
radosgw-admin user create --uid sluice --display-name Sluice
radosgw-admin role create --role-name sluice --assume-role-policy-doc '{
  "Version": "2012-10-17",
  "Statement": [{"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/sluice"]}, "Action": ["sts:AssumeRole"]}]
}'
radosgw-admin role policy put --role-name sluice --policy-name objects --policy-doc '{
  "Version": "2012-10-17",
  "Statement": [{"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"],
                 "Resource": ["arn:aws:s3:::artifacts", "arn:aws:s3:::artifacts/*"]}]
}'
# Session tags need sts:TagSession in the trust policy, where your release of Ceph knows it.
