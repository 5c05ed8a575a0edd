package s3wire

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// frame is what a request's headers say of how its body comes.
type frame struct {
	sum, length, trailer, encoding string
	has                            uint8
}

func (f *frame) take(name string, values []string) error {
	if len(values) > 1 {
		return repeated("header", name)
	}
	var at *string
	var bit uint8
	switch name {
	case "x-amz-content-sha256":
		at, bit = &f.sum, 1
	case "x-amz-decoded-content-length":
		at, bit = &f.length, 2
	case "x-amz-trailer":
		at, bit = &f.trailer, 4
	}
	if f.has&bit != 0 {
		return repeated("header", name)
	}
	f.has |= bit
	*at = values[0]
	if *at == "" {
		return errorf("InvalidArgument", "header %s is empty", name)
	}
	return nil
}

// takeEncoding keeps what of Content-Encoding says something of the object: aws-chunked is of the way here only.
func (f *frame) takeEncoding(values []string) error {
	f.encoding = values[0]
	if len(values) > 1 {
		f.encoding = strings.Join(values, ",")
	}
	if err := checkValue("content-encoding", f.encoding); err != nil {
		return err
	}
	if containsFold(f.encoding, "aws-chunked") {
		codings := strings.Split(f.encoding, ",")
		codings = slices.DeleteFunc(codings, func(c string) bool {
			c = strings.TrimSpace(c)
			return c == "" || strings.EqualFold(c, "aws-chunked")
		})
		f.encoding = strings.TrimSpace(strings.Join(codings, ","))
	}
	return nil
}

func containsFold(s, part string) bool {
	return len(s) >= len(part) && strings.Contains(strings.ToLower(s), part)
}

// payload says how the body of an operation comes. Where the operation takes none, there must be none.
func (f *frame) payload(e *entry, r *http.Request) (Payload, error) {
	p := Payload{Wire: r.ContentLength, Length: r.ContentLength}
	if len(r.TransferEncoding) > 0 {
		if len(r.TransferEncoding) != 1 || r.TransferEncoding[0] != "chunked" {
			return p, errorf("NotImplemented", "of the transfer encodings, only chunked is known")
		}
		p.Wire, p.Length = -1, -1
	}
	if p.Wire < -1 {
		return p, errorf("InvalidRequest", "Content-Length is negative")
	}

	switch f.sum {
	case "", "UNSIGNED-PAYLOAD":
		p.Kind = PayloadUnsigned
	case "STREAMING-UNSIGNED-PAYLOAD-TRAILER":
		p.Kind = PayloadUnsignedTrailer
	case "STREAMING-AWS4-HMAC-SHA256-PAYLOAD":
		p.Kind = PayloadSigned
	case "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER":
		p.Kind = PayloadSignedTrailer
	default:
		if strings.HasPrefix(f.sum, "STREAMING-AWS4-ECDSA-") {
			return p, errorf("NotImplemented", "x-amz-content-sha256 is of Signature Version 4A, which this proxy does not verify: sign with Version 4")
		}
		if !isSHA256(f.sum) {
			return p, errorf("InvalidArgument", "x-amz-content-sha256 must be a SHA-256 in hexadecimal, UNSIGNED-PAYLOAD, or a STREAMING-… value that S3 knows")
		}
		p.Kind, p.SHA256 = PayloadHash, strings.ToLower(f.sum)
	}

	if !e.body {
		if p.Wire != 0 {
			return p, errorf("InvalidRequest", "%s takes no body", e.name)
		}
		if f.length != "" && f.length != "0" || f.trailer != "" {
			return p, errorf("InvalidRequest", "%s takes no body, but its headers tell of one", e.name)
		}
		if e.headerSet.has(headerContentEncoding) {
			p.Encoding = f.encoding // of the object that it makes
		}
		if p.Kind != PayloadHash {
			p.Kind = PayloadUnsigned
		}
		return p, nil
	}

	// Whether the lengths and the trailer agree with the body is for Payload.Outbound to see.
	if f.length != "" {
		n, err := strconv.ParseUint(f.length, 10, 63)
		if err != nil {
			return p, errorf("InvalidArgument", "x-amz-decoded-content-length must be a number")
		}
		p.Length = int64(n)
		if !p.framed() && p.Wire >= 0 && p.Wire != p.Length {
			return p, errorf("InvalidRequest", "x-amz-decoded-content-length differs from Content-Length, and the body is not chunked by x-amz-content-sha256: STREAMING-…")
		}
	} else if p.framed() {
		p.Length = -1
	}
	p.Trailer = strings.ToLower(strings.TrimSpace(f.trailer))
	if p.Trailer != "" && checksumSize(p.Trailer) == 0 {
		return p, errorf("InvalidRequest", "x-amz-trailer must name one checksum of S3's (x-amz-checksum-crc32, …)")
	}

	switch {
	case e.headerSet.has(headerContentEncoding):
		p.Encoding = f.encoding
	case e.name == "UploadPart" || f.encoding == "" || strings.EqualFold(f.encoding, "identity"):
		// An object's encoding is said when its upload is created; S3 does not look at a part's.
	default:
		return p, errorf("NotImplemented", "the body of %s cannot be of Content-Encoding %s", e.name, quote(f.encoding))
	}
	return p, nil
}

func isSHA256(s string) bool {
	for i := 0; i < len(s); i++ {
		if !isHex(s[i]) {
			return false
		}
	}
	return len(s) == 64
}
