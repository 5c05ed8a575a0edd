#!/usr/bin/env bash
# Makes the secrets and a certificate for localhost, once.
set -euo pipefail
cd "$(dirname "$0")"
umask 077
mkdir -p secrets tls
for name in minio_root minio_secret; do [ -s secrets/$name ] || openssl rand -hex 20 > secrets/$name; done
[ -s secrets/session_keys ] || openssl rand -base64 32 > secrets/session_keys
[ -s tls/tls.crt ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj /CN=localhost \
  -addext 'subjectAltName=DNS:localhost,DNS:*.localhost' -keyout tls/tls.key -out tls/tls.crt
# The container runs as 65532, and bind mounts keep their owner.
chmod 0644 secrets/* tls/*
chmod 0755 tls
