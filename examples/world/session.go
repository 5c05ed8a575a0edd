package world

import (
	"bytes"
	"compress/flate"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"
)

// session is what an STS remembers of a session. It remembers nothing: the session token carries it all, so that the
// STS and every S3 server share but one key.
type session struct {
	AccessKeyID string    `json:"k"`
	RoleARN     string    `json:"r"`
	ARN         string    `json:"a"` // of the session itself
	Expires     time.Time `json:"e"`
	RolePolicy  string    `json:"rp,omitempty"` // what the role may do; "" = everything
	Policy      string    `json:"p,omitempty"`  // what the session is narrowed to; "" = not
}

// sessionKey seals session tokens and makes their secrets.
type sessionKey string

func (k sessionKey) mac(purpose string, data []byte) []byte {
	h := hmac.New(sha256.New, []byte(k))
	io.WriteString(h, purpose+"\x00")
	h.Write(data)
	return h.Sum(nil)
}

func (k sessionKey) secret(accessKeyID string) string {
	return base64.RawStdEncoding.EncodeToString(k.mac("secret", []byte(accessKeyID)))[:40]
}

// seal packs the session into its token. Packed, because the S3 server takes no more than 8 KB of headers and a
// session policy can be 2 KB of it.
func (k sessionKey) seal(s *session) (token string, err error) {
	plain, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	var packed bytes.Buffer
	w, err := flate.NewWriter(&packed, flate.BestCompression)
	if err != nil {
		return "", err
	}
	w.Write(plain)
	if err := w.Close(); err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(append(k.mac("token", packed.Bytes()), packed.Bytes()...)), nil
}

var errBadToken = errors.New("session token was not issued here")

func (k sessionKey) open(token string) (*session, error) {
	data, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(data) < sha256.Size {
		return nil, errBadToken
	}
	sum, packed := data[:sha256.Size], data[sha256.Size:]
	if !hmac.Equal(sum, k.mac("token", packed)) {
		return nil, errBadToken
	}
	plain, err := io.ReadAll(flate.NewReader(bytes.NewReader(packed)))
	if err != nil {
		return nil, errBadToken
	}
	s := new(session)
	if err := json.Unmarshal(plain, s); err != nil {
		return nil, errBadToken
	}
	return s, nil
}

func newSessionKeyID() string { return "ASIA" + strings.ToUpper(rand.Text()[:16]) }
