package identity

import (
	"bytes"
	"compress/flate"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
	"time"
)

// A session token is an identity, sealed: nothing about a session is stored, and whoever has the key can open it.
//
//	"sluice1_" base64url(key id, 4 bytes ‖ salt, 24 bytes ‖ AES-256-GCM(deflate(JSON)))
//
// The digit is the version of all that follows it. From the sealing key and the salt HKDF-SHA256 derives the key of
// this one AEAD, the session's access key id and its secret key. Since no two tokens share a salt, and so no two an
// AEAD key, its nonce is zero. What comes before the ciphertext is authenticated with it.
const (
	tokenPrefix = "sluice1_"
	keyIDSize   = 4
	saltSize    = 24
	tagSize     = 16

	// accessKeyPrefix cannot be AWS's, whose access key ids all begin with A.
	accessKeyPrefix = "SLCE"

	// maxSealed bounds what is issued and opened. An OIDC token is far from this large; a session token of an
	// ordinary one has less than 1 KiB, because proxies and servers stop at 8 KiB of headers.
	maxSealed = 16 << 10
	maxOpened = 64 << 10
)

// sealingKey is one line of the key file.
type sealingKey struct {
	id     [keyIDSize]byte
	secret [32]byte
}

func newSealingKey(secret [32]byte) (sealingKey, error) {
	k := sealingKey{secret: secret}
	id, err := hkdf.Key(sha256.New, secret[:], nil, "sluice session key id", keyIDSize)
	copy(k.id[:], id)
	return k, err
}

// derived is what a sealing key and a salt give.
type derived struct {
	aead        cipher.AEAD
	accessKeyID string
	secret      string
}

func (k *sealingKey) derive(salt []byte) (derived, error) {
	const aeadKey, keyID, secret = 32, 10, 30
	b, err := hkdf.Key(sha256.New, k.secret[:], salt, "sluice session 1", aeadKey+keyID+secret)
	if err != nil {
		return derived{}, err
	}
	block, err := aes.NewCipher(b[:aeadKey])
	if err != nil {
		return derived{}, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return derived{}, err
	}
	return derived{
		aead: aead,
		// 20 characters in upper case and 40 without a slash, which is what tools expect of AWS's.
		accessKeyID: accessKeyPrefix + base32.StdEncoding.EncodeToString(b[aeadKey:aeadKey+keyID]),
		secret:      base64url.EncodeToString(b[aeadKey+keyID:]),
	}, nil
}

var zeroNonce = make([]byte, 12)

// seal makes a session token of plain.
func (k *sealingKey) seal(plain []byte) (token string, d derived, err error) {
	head := make([]byte, keyIDSize+saltSize, keyIDSize+saltSize+len(plain)+tagSize)
	copy(head, k.id[:])
	salt := head[keyIDSize:]
	rand.Read(salt)
	if d, err = k.derive(salt); err != nil {
		return "", derived{}, err
	}
	sealed := d.aead.Seal(head, zeroNonce, plain, additional(head))
	token = tokenPrefix + base64url.EncodeToString(sealed)
	if len(token) > maxSealed {
		return "", derived{}, errTooLarge
	}
	return token, d, nil
}

func additional(head []byte) []byte {
	return append([]byte(tokenPrefix), head[:keyIDSize+saltSize]...)
}

var (
	errTooLarge  = fmt.Errorf("the sealed session has more than %d bytes", maxSealed)
	errNotSealed = errors.New("not a session token")
	errNoKey     = errors.New("sealed with a key that is not in sessions.key_file")
	errAltered   = errors.New("truncated or altered")
)

// open is the reverse of seal, with whichever of the keys the token names.
func open(keys []sealingKey, token string) (plain []byte, d derived, err error) {
	text, ok := strings.CutPrefix(token, tokenPrefix)
	if !ok || len(token) > maxSealed {
		return nil, derived{}, errNotSealed
	}
	sealed, err := base64url.DecodeString(text)
	// The decoder skips line breaks, and a token has one spelling only.
	if err != nil || base64url.EncodedLen(len(sealed)) != len(text) || len(sealed) < keyIDSize+saltSize+tagSize {
		return nil, derived{}, errAltered
	}
	err = errNoKey
	for i := range keys {
		k := &keys[i]
		if !bytes.Equal(k.id[:], sealed[:keyIDSize]) {
			continue
		}
		if d, err = k.derive(sealed[keyIDSize : keyIDSize+saltSize]); err != nil {
			return nil, derived{}, err
		}
		if plain, err = d.aead.Open(nil, zeroNonce, sealed[keyIDSize+saltSize:], additional(sealed)); err == nil {
			return plain, d, nil
		}
		err = errAltered
	}
	return nil, derived{}, err
}

// sealedIdentity is an identity inside a session token.
type sealedIdentity struct {
	Issuer        string          `json:"iss"`
	Subject       string          `json:"sub"`
	Audience      []string        `json:"aud"`
	Session       string          `json:"session"`
	TokenID       string          `json:"jti"`
	RequestedRole string          `json:"role"`
	SessionName   string          `json:"name"`
	IssuedAt      int64           `json:"iat"`
	Expires       int64           `json:"exp"`
	Attributes    Attributes      `json:"attributes"`
	Claims        json.RawMessage `json:"claims,omitempty"` // absent where they are the token's
	Token         *sealedToken    `json:"token,omitempty"`
}

// sealedToken is the OIDC token with its parts decoded, which compress better so, and hold the claims besides.
type sealedToken struct{ Header, Payload, Signature string }

func splitToken(raw string) *sealedToken {
	header, rest, _ := strings.Cut(raw, ".")
	payload, signature, _ := strings.Cut(rest, ".")
	h, errHeader := base64url.DecodeString(header)
	p, errPayload := base64url.DecodeString(payload)
	t := &sealedToken{string(h), string(p), signature}
	if errHeader != nil || errPayload != nil || t.raw() != raw {
		return &sealedToken{Signature: raw}
	}
	return t
}

func (t *sealedToken) raw() string {
	if t.Header == "" {
		return t.Signature
	}
	encode := base64url.EncodeToString
	return encode([]byte(t.Header)) + "." + encode([]byte(t.Payload)) + "." + t.Signature
}

// encodeIdentity writes what a session of id is made of. raw is the OIDC token where the session shall carry it, else "".
func encodeIdentity(id *Identity, sessionName, raw string) ([]byte, error) {
	s := sealedIdentity{
		Issuer: id.Issuer, Subject: id.Subject, Audience: id.Audience, Session: id.Session, TokenID: id.TokenID,
		RequestedRole: id.RequestedRole, SessionName: sessionName,
		IssuedAt: id.IssuedAt.Unix(), Expires: id.Expires.Unix(), Attributes: id.Attributes,
	}
	if raw != "" {
		s.Token = splitToken(raw)
	}
	if claims, err := s.claims(); err != nil || !reflect.DeepEqual(claims, id.Claims) {
		if s.Claims, err = marshal(id.Claims); err != nil {
			return nil, err
		}
	}
	plain, err := marshal(s)
	if err != nil {
		return nil, err
	}
	if len(plain) > maxOpened {
		return nil, errTooLarge
	}
	var b bytes.Buffer
	w := compressors.Get().(*flate.Writer)
	defer compressors.Put(w)
	w.Reset(&b) // to the state with the dictionary
	w.Write(plain)
	err = w.Close()
	return b.Bytes(), err
}

// compressors are kept because each has most of a megabyte.
var compressors = sync.Pool{New: func() any {
	w, err := flate.NewWriterDict(nil, flate.BestCompression, []byte(dictionary))
	if err != nil {
		panic(err) // only for another level
	}
	return w
}}

// decodeIdentity is the reverse of encodeIdentity. size is what there was before compression.
func decodeIdentity(compressed []byte) (s *sealedIdentity, claims map[string]any, size int, err error) {
	plain, err := io.ReadAll(io.LimitReader(flate.NewReaderDict(bytes.NewReader(compressed), []byte(dictionary)), maxOpened+1))
	if err != nil {
		return nil, nil, 0, err
	}
	if len(plain) > maxOpened {
		return nil, nil, 0, errTooLarge
	}
	s = &sealedIdentity{}
	if err := json.Unmarshal(plain, s); err != nil {
		return nil, nil, 0, err
	}
	claims, err = s.claims()
	return s, claims, len(plain), err
}

func (s *sealedIdentity) claims() (map[string]any, error) {
	if s.Claims == nil && s.Token != nil {
		return decodeClaims([]byte(s.Token.Payload))
	}
	return decodeClaims(s.Claims)
}

// identity makes an Identity anew for one method of use. Claims are shared: nobody changes them.
func (s *sealedIdentity) identity(method string, claims map[string]any) *Identity {
	id := &Identity{
		Issuer: s.Issuer, Subject: s.Subject, Audience: s.Audience, Session: s.Session, TokenID: s.TokenID,
		Method: method, RequestedRole: s.RequestedRole,
		IssuedAt: time.Unix(s.IssuedAt, 0), Expires: time.Unix(s.Expires, 0),
		Claims: claims, Attributes: s.Attributes,
	}
	if s.Token != nil {
		id.token = s.Token.raw()
	}
	id.Derived(sessionNameKey{}, func() any { return s.SessionName })
	return id
}

// marshal is json.Marshal without escapes that only HTML needs, which would make every session token longer.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// dictionary is what tokens have in common, so that a short one compresses too. It is part of the format: a change
// needs another version.
const dictionary = `{"alg":"RS256","kid":"","typ":"JWT"}ES256","runner_environment":"","workflow_ref":"","repository_visibility":"private","repository_owner_id":"","repository_owner":"","repository_id":"","run_attempt":"1","run_number":"","run_id":"","head_ref":"","base_ref":"","event_name":"push","ref_type":"branch","ref_protected":"false","actor_id":"","job_workflow_ref":".github/workflows/.yml@refs/heads/main","https://token.actions.githubusercontent.com","repo::ref:refs/heads/main","namespace_path":"","project_path":"","pipeline_source":"","user_email":"","user_login":"","preferred_username":"","email_verified":true,"email":"@","name":"","groups":["","roles":["","organization_id":"","org_id":"","environment_id":"","workspace_id":"","project_id":"","runner_id":"","https://app.gitpod.io","nonce":"","azp":"","sid":"","scope":"openid","auth_time":1,"nbf":1,"exp":179,"iat":179,"jti":"","aud":"https://s3.","sub":"","iss":"https://{"iss":"https://","sub":"","aud":["https://"],"session":"","jti":"","role":"arn:aws:iam::123456789012:role/sluice","name":"","iat":179,"exp":179,"attributes":{"workspace":"","project":"","repository":"https://github.com/","user":"","groups":[null]},"claims":{"aud":"https://,"token":{"Header":"{\"alg\":\"RS256\",\"kid\":\"","Payload":"{\"iss\":\"https://\",\"sub\":\"\",\"aud\":\"","Signature":"`
