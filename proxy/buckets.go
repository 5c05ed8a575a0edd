package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy/http1"
	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// maxBuckets bounds what one ListBuckets gathers from a backend: AWS's own limit for an account.
const maxBuckets = 10_000

// listBuckets answers with the buckets, over all backends, on which s3:ListBucket is allowed. Who may also
// s3:ListAllMyBuckets is told where there are none; who may neither is refused, as is whom policy denies it.
func (c *call) listBuckets() {
	decision, err := c.decide(c.op.Accesses())
	if err != nil {
		c.refuse(err)
		return
	}
	var refused error
	if !decision.Allow {
		refused = c.denied(decision)
		if slices.ContainsFunc(decision.Verdicts, func(v policy.Verdict) bool { return v.Denied }) {
			c.refuse(refused)
			return
		}
	}
	var all []s3wire.Bucket
	for i := range c.proxy.Backends {
		b := &c.proxy.Backends[i]
		buckets, err := c.bucketsOf(b)
		if err != nil {
			c.refuse(err)
			return
		}
		for _, bucket := range buckets {
			if c.proxy.backendOf(bucket.Name) == b {
				if bucket.Region == "" {
					bucket.Region = b.Region
				}
				all = append(all, bucket)
			}
		}
	}
	c.event.Backend.Name = c.backendNames()

	accesses := make([]s3wire.Access, len(all))
	for i, bucket := range all {
		accesses[i] = s3wire.Access{Action: "s3:ListBucket", Bucket: bucket.Name}
	}
	if len(accesses) > 0 {
		allowed, err := c.proxy.Policy.Allowed(c.ctx, c.question(accesses))
		if err != nil {
			c.refuse(err)
			return
		}
		seen := all[:0]
		for i, bucket := range all {
			if allowed[i] {
				seen = append(seen, bucket)
			}
		}
		all = seen
	}
	if refused != nil {
		if len(all) == 0 {
			c.refuse(refused)
			return
		}
		c.allowedBy(all)
	}
	slices.SortFunc(all, func(a, b s3wire.Bucket) int { return strings.Compare(a.Name, b.Name) })

	var page bytes.Buffer
	if err := c.op.WriteBuckets(&page, all, c.proof.Identity.Session); err != nil {
		c.refuse(err)
		return
	}
	c.answerXML(page.Bytes())
}

// allowedBy records the buckets that the request was allowed for, in place of what it was not.
func (c *call) allowedBy(buckets []s3wire.Bucket) {
	c.event.Accesses = make([]audit.Access, len(buckets))
	for i, b := range buckets {
		c.event.Accesses[i] = audit.Access{Action: "s3:ListBucket", Bucket: b.Name, Allow: true}
	}
	c.event.Decision.Allow, c.event.Decision.Reasons = true, nil
}

func (c *call) backendNames() string {
	names := make([]string, len(c.proxy.Backends))
	for i := range c.proxy.Backends {
		names[i] = c.proxy.Backends[i].Name
	}
	return strings.Join(names, ",")
}

// bucketsOf reads every page of one backend's own list, asked for as policy's role.
func (c *call) bucketsOf(b *Backend) ([]s3wire.Bucket, error) {
	c.event.Backend.Name = b.Name
	var all []s3wire.Bucket
	for next := ""; ; {
		u := *b.Endpoint
		u.Path = "/"
		if next != "" {
			u.RawQuery = "continuation-token=" + url.QueryEscape(next)
		}
		out := (&http.Request{Method: http.MethodGet, URL: &u, Host: u.Host, Header: http.Header{"User-Agent": {"sluice"}}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(c.ctx)
		if err := b.Signer.Sign(c.ctx, out, emptySHA256, c.as()); err != nil {
			return nil, err
		}
		answer, err := c.roundTrip(b, out)
		if err != nil {
			return nil, err
		}
		page, token, err := readBuckets(b, answer)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if token == "" || token == next || len(all) >= maxBuckets {
			return all, nil
		}
		next = token
	}
}

// emptySHA256 is the SHA-256 of nothing.
const emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func readBuckets(b *Backend, answer *http1.Answer) ([]s3wire.Bucket, string, error) {
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		_, _ = io.CopyN(io.Discard, answer.Body, 64<<10)
		if answer.StatusCode == http.StatusForbidden {
			return nil, "", &s3wire.Error{Code: "AccessDenied", Message: fmt.Sprintf("backend %q does not let this proxy's role list its buckets", b.Name)}
		}
		return nil, "", &backendDown{b.Name, fmt.Errorf("ListBuckets answered %s", answer.Status)}
	}
	buckets, next, err := s3wire.ReadBuckets(answer.Body)
	if err != nil {
		return nil, "", &backendDown{b.Name, err}
	}
	return buckets, next, nil
}

// answerXML is a whole answer of Sluice's own.
func (c *call) answerXML(body []byte) {
	if err := c.journal(); err != nil {
		c.refuse(err)
		return
	}
	header := c.out.Header()
	header.Set("Content-Type", "application/xml")
	header.Set("Content-Length", fmt.Sprint(len(body)))
	header.Set("X-Amz-Request-Id", c.event.ID)
	c.out.WriteHeader(http.StatusOK)
	if c.in.Method != http.MethodHead {
		if _, err := c.out.Write(body); err != nil {
			c.refuse(err)
			return
		}
	}
	c.event.Outcome = audit.Completed
}
