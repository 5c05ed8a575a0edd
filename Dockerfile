#   docker build --build-arg VERSION=1.2.3 --build-arg COMMIT=$(git rev-parse HEAD) -t sluice .
#
# The result is the static binary and the CAs that it trusts, on nothing. It runs as nobody in particular, on a read-only
# root file system; it writes below /var/lib/sluice and /var/log/sluice.
#
# The one base is Go's own image, at an exact version. Builds that must not trust its tag pin the digest too, from
# `docker buildx imagetools inspect golang:1.26.8-trixie`:
#   --build-arg GO_IMAGE=golang:1.26.8-trixie@sha256:…
# The binary does not depend on the image: .ci/reproducible makes the same bytes anywhere with the same Go.
ARG GO_IMAGE=golang:1.26.8-trixie

FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS build
WORKDIR /src
ENV CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download && go mod verify
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=(devel)
ARG COMMIT=unknown
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false \
      -ldflags "-s -w -buildid= -X main.version=${VERSION} -X main.commit=${COMMIT}" -o /root-fs/proxy ./cmd/proxy \
 && mkdir -p /root-fs/etc/ssl/certs /root-fs/etc/sluice /root-fs/var/lib/sluice /root-fs/var/log/sluice /root-fs/tmp \
 && cp /etc/ssl/certs/ca-certificates.crt /root-fs/etc/ssl/certs/ \
 && echo 'sluice:x:65532:65532::/var/lib/sluice:/proxy' > /root-fs/etc/passwd \
 && chown -R 65532:65532 /root-fs/var/lib/sluice /root-fs/var/log/sluice && chmod 1777 /root-fs/tmp

FROM scratch
ARG VERSION=(devel)
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="sluice" \
      org.opencontainers.image.description="Keyless S3 for workspaces: an authenticating proxy in front of S3" \
      org.opencontainers.image.source="https://github.com/sluice-s3/sluice" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
COPY --from=build /root-fs/ /
USER 65532:65532
EXPOSE 8443
STOPSIGNAL SIGTERM
# Of the admin listener at its default; where admin.address is another, override it (or leave it to an orchestrator's probes).
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["/proxy", "healthcheck"]
ENTRYPOINT ["/proxy"]
CMD ["serve", "--config", "/etc/sluice/sluice.yaml"]
