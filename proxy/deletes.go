package proxy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/proxy/http1"
	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// deleteObjects authorises every key of the body by itself. As in S3 it is partial: what policy refuses comes back
// as an entry of the result, and the rest is deleted by a body that names nothing else.
func (c *call) deleteObjects() {
	if err := c.route(c.op.Bucket, nil); err != nil {
		c.refuse(err)
		return
	}
	batch, err := c.readDelete()
	if err != nil {
		c.refuse(err)
		return
	}
	if c.backend != nil && c.backend.StrictKeys {
		for _, o := range batch.Objects {
			if err := s3wire.StrictKey(o.Key); err != nil {
				c.refuse(err)
				return
			}
		}
	}
	decision, err := c.decide(c.op.DeleteAccesses(batch))
	if err != nil {
		c.refuse(err)
		return
	}
	// Entry i needs every access that is i modulo the number of entries: see DeleteAccesses.
	refused := map[int]string{}
	for i, verdict := range decision.Verdicts {
		if !verdict.Allow {
			refused[i%len(batch.Objects)] = withReasons("policy does not allow "+c.event.Accesses[i].Action, verdict.Reasons)
		}
	}
	if c.backend == nil {
		if len(refused) > 0 {
			c.refuse(c.denied(decision))
			return
		}
		c.refuse(noBackend(c.op.Bucket))
		return
	}

	var result io.Reader
	if len(refused) < len(batch.Objects) {
		answer, err := c.sendDelete(batch, refused)
		if err != nil {
			c.refuse(err)
			return
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK || len(refused) == 0 {
			c.settle(c.relay(answer))
			return
		}
		result = answer.Body
	}
	page, err := batch.Result(result, refused)
	if err != nil {
		c.refuse(&backendDown{c.backend.Name, err})
		return
	}
	c.answerXML(page)
	if len(refused) == len(batch.Objects) && c.event.Outcome == audit.Completed {
		c.event.Outcome = audit.Refused
		c.event.Error = "AccessDenied"
	}
}

// readDelete reads the body: bounded, unframed, and held to what the client signed of it.
func (c *call) readDelete() (*s3wire.Delete, error) {
	body, err := c.op.Payload.Unframed(c.body(), c.chunks(), c.proof.CheckHash)
	if err != nil {
		return nil, err
	}
	return s3wire.ParseDelete(body, c.in.Header)
}

func (c *call) sendDelete(batch *s3wire.Delete, refused map[int]string) (*http1.Answer, error) {
	encoded, digests := batch.Encode(func(i int) bool { _, no := refused[i]; return !no })
	header := map[string]string{}
	for name := range digests {
		header[name] = digests.Get(name)
	}
	return c.send(c.backend, s3wire.Outbound{
		Body: bytes.NewReader(encoded), Length: int64(len(encoded)), SHA256: hexSHA256(encoded), Header: header,
	})
}

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
