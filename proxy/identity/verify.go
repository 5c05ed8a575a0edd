package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	strictjson "github.com/go-jose/go-jose/v4/json"
)

const (
	// maxTokenBytes is above what any issuer makes and below what a Go server takes in a header.
	maxTokenBytes = 16 << 10
	// maxTokenAge is how long a token is accepted after it was issued, whatever its exp says: a day, and an hour for
	// those who rotate daily (Kubernetes does at 24 h). It bounds what a leaked token is worth, and for how long a
	// revocation has to be remembered.
	maxTokenAge = 25 * time.Hour
)

// asymmetric are the algorithms that verify by a public key. A token under any other is refused before it is read:
// under none it proves nothing, and under HS256 whoever knows the public key could have signed it.
var asymmetric = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// VerifyToken verifies an OIDC token apart from any request, for the exchanges that take one as a parameter.
func (a *Authenticator) VerifyToken(ctx context.Context, raw string) (*Identity, error) {
	return a.verifyToken(ctx, raw)
}

// verifyToken is the one verifier of every door: of bearer tokens, of exchanges, of tokens sent as session tokens.
// Its errors are *Error.
func (a *Authenticator) verifyToken(ctx context.Context, raw string) (*Identity, error) {
	id := a.cache.get(raw, a.now())
	if id == nil {
		var err error
		id, err = a.cache.once(ctx, raw, func(ctx context.Context) (*verified, error) { return a.verify(ctx, raw) })
		if err != nil {
			return nil, err
		}
	}
	if err := a.revocations.Check(id); err != nil {
		return nil, err
	}
	return id, nil
}

// verify does the whole work on a token that is not in the cache.
func (a *Authenticator) verify(ctx context.Context, raw string) (*verified, error) {
	t, err := a.parseToken(raw)
	if err != nil {
		return nil, err
	}
	if strings.Contains(t.typ, "logout") || t.isLogout() {
		return nil, badToken("this is a logout token, which proves no identity: send an ID token or an access token")
	}
	// What the token says of itself is looked at before its signature, so that whoever sends an old or a wrong one is
	// told so even when the key that signed it is long gone. None of it grants anything.
	now := a.now()
	if err := t.checkTimes(now); err != nil {
		return nil, err
	}
	if err := t.checkAudience(); err != nil {
		return nil, err
	}
	if err := t.checkSignature(ctx, raw); err != nil {
		return nil, err
	}
	if err := t.checkParty(); err != nil {
		return nil, err
	}
	if err := t.issuer.checkRequired(t.claims); err != nil {
		return nil, err
	}
	id, err := t.identity()
	if err != nil {
		return nil, err
	}
	id.proof = Proof{Identity: id, ExpiresAt: id.Expires}
	id.token = strings.Clone(raw) // raw is a part of a request's header, all of which would be kept with it
	v := &verified{
		identity: id,
		until:    id.Expires.Add(t.issuer.leeway).UnixNano(),
		set:      t.issuer.keys,
		key:      t.key,
		weight:   id.weight(),
	}
	v.keys.Store(t.keys)
	return v, nil
}

// token is one being verified.
type token struct {
	kid       string
	algorithm jose.SignatureAlgorithm
	typ       string // in lower case
	claims    map[string]any
	issuer    *issuer

	subject  string
	audience []string
	id       string
	issued   time.Time
	expires  time.Time

	key  *key  // that verified it
	keys *keys // where key was
	err  error // of the signature: go-oidc flattens errors to text
}

// parseToken reads a token as far as finding its issuer, without believing any of it.
func (a *Authenticator) parseToken(raw string) (*token, error) {
	if len(raw) > maxTokenBytes {
		return nil, badToken("the token is larger than 16 KiB")
	}
	if problem := shapeProblem(raw); problem != "" {
		return nil, badToken("the token is not a signed JWT: %s", problem)
	}
	header, rest, _ := strings.Cut(raw, ".")
	payload, _, _ := strings.Cut(rest, ".")
	t := &token{}
	if err := t.readHeader(header); err != nil {
		return nil, err
	}
	data, err := base64url.DecodeString(payload)
	if err != nil {
		// Not err's text, here and above: it may quote what it could not read.
		return nil, badToken("the token is not a signed JWT: its payload cannot be read")
	}
	if t.claims, err = decodeClaims(data); err != nil {
		return nil, err
	}
	name, ok := t.claims["iss"].(string)
	if !ok || name == "" {
		return nil, badToken("the token has no iss claim")
	}
	if t.issuer = a.issuers[name]; t.issuer == nil {
		return nil, a.unknownIssuer(name)
	}
	if !slices.Contains(t.issuer.algorithms, t.algorithm) {
		return nil, badToken("the token is signed with %s: of issuer %s this proxy accepts %s", t.algorithm, name, joined(t.issuer.algorithms))
	}
	if t.subject, ok = t.claims["sub"].(string); t.claims["sub"] != nil && !ok {
		return nil, badToken("the token's sub claim is not a string")
	}
	if t.id, ok = t.claims["jti"].(string); t.claims["jti"] != nil && !ok {
		return nil, badToken("the token's jti claim is not a string")
	}
	return t, nil
}

// inToken are the characters of base64url. What a token has of them is as good as random, so that a processor guesses
// wrong at each question it is asked of one; here there is a single answer for all.
var inToken = func() (in [256]bool) {
	for _, ch := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		in[ch] = true
	}
	return in
}()

// shapeProblem tells what keeps raw from being three base64url parts. go-oidc would also take white space and JSON.
func shapeProblem(raw string) string {
	parts := 1
	last := -1
	for n := 0; n < len(raw); n++ {
		if inToken[raw[n]] {
			continue
		}
		switch raw[n] {
		case '.':
			if n == last+1 {
				return "one of its parts is empty"
			}
			last = n
			parts++
		case ' ', '\t':
			return "there is a blank in or around it"
		case ',':
			return "there is a comma in it: send one token"
		default:
			return "it has characters that no token has"
		}
	}
	switch {
	case len(raw) == 0:
		return "it is empty"
	case parts == 1:
		return "it is a single part without dots, where header, payload and signature are needed (an opaque access token is none: send the ID token)"
	case parts != 3:
		return fmt.Sprintf("it has %d parts instead of 3", parts)
	case last == len(raw)-1:
		return "it has no signature"
	}
	return ""
}

// readHeader refuses a header that wants to say how it is to be verified: by a key of its own (jwk), by one that
// would have to be fetched (jku, x5u), or by an extension (crit, b64).
func (t *token) readHeader(encoded string) error {
	data, err := base64url.DecodeString(encoded)
	if err != nil {
		return badToken("the token is not a signed JWT: its header cannot be read")
	}
	var header map[string]any
	if err := strictjson.Unmarshal(data, &header); err != nil {
		return badToken("the token is not a signed JWT: its header cannot be read")
	}
	algorithm, _ := header["alg"].(string)
	if t.algorithm = jose.SignatureAlgorithm(algorithm); !slices.Contains(asymmetric, t.algorithm) {
		return badToken("the token's algorithm is %.20q: only asymmetric signatures are accepted, such as RS256 and ES256", algorithm)
	}
	for _, name := range []string{"crit", "jku", "x5u", "jwk", "b64"} {
		if _, ok := header[name]; ok {
			return badToken("the token's header has %q, which is not accepted", name)
		}
	}
	var ok bool
	if t.kid, ok = header["kid"].(string); header["kid"] != nil && !ok || len(t.kid) > 256 {
		return badToken("the token's kid is not a string of at most 256 bytes")
	}
	typ, ok := header["typ"].(string)
	if header["typ"] != nil && !ok {
		return badToken("the token's typ is not a string")
	}
	switch t.typ = strings.TrimPrefix(strings.ToLower(typ), "application/"); t.typ {
	case "", "jwt", "jose", "at+jwt", "logout+jwt":
		return nil
	default:
		return badToken("the token's typ is %.40q: send an ID token (JWT) or an access token (at+jwt)", typ)
	}
}

// decodeClaims reads a payload as one JSON object in which no name comes twice: of two, each reader would take its own.
// Numbers are json.Number.
func decodeClaims(payload []byte) (map[string]any, error) {
	decoder := strictjson.NewDecoder(bytes.NewReader(payload))
	decoder.SetNumberType(strictjson.UnmarshalJSONNumber)
	var claims any
	if err := decoder.Decode(&claims); err != nil || decoder.Decode(new(any)) != io.EOF {
		return nil, badToken("the token's claims are not one JSON object without repeated names")
	}
	object, ok := claims.(map[string]any)
	if !ok {
		return nil, badToken("the token's claims are not a JSON object")
	}
	tidy(object)
	return object, nil
}

// tidy makes the numbers those of encoding/json, which all readers of claims expect, and the names those that other
// tokens' claims have: an issuer's are the same in all.
func tidy(claims any) {
	switch claims := claims.(type) {
	case map[string]any:
		for name, value := range claims {
			if n, ok := value.(strictjson.Number); ok {
				value = json.Number(n)
			}
			tidy(value)
			claims[unique.Make(name).Value()] = value // the same name, so nothing is added
		}
	case []any:
		for i, value := range claims {
			if n, ok := value.(strictjson.Number); ok {
				claims[i] = json.Number(n)
			}
			tidy(value)
		}
	}
}

// checkTimes fills in issued and expires.
func (t *token) checkTimes(now time.Time) error {
	leeway := t.issuer.leeway
	exp, err := numericDate(t.claims, "exp")
	if err != nil {
		return err
	}
	iat, err := numericDate(t.claims, "iat")
	if err != nil {
		return err
	}
	t.issued, t.expires = iat, exp
	if end := iat.Add(maxTokenAge); exp.After(end) {
		t.expires = end
	}
	switch {
	case !now.Before(exp.Add(leeway)):
		return &Error{Kind: Expired, Message: fmt.Sprintf("the token expired %s ago: fetch a new one", ago(now.Sub(exp)))}
	case !now.Before(t.expires.Add(leeway)):
		return &Error{Kind: Expired, Message: fmt.Sprintf("the token was issued %s ago, and none is accepted for longer than %s: fetch a new one", ago(now.Sub(iat)), ago(maxTokenAge))}
	case iat.After(now.Add(leeway)):
		return badToken("the token was issued %s from now: the clocks of its issuer and of this proxy differ", ago(iat.Sub(now)))
	case exp.Before(iat):
		return badToken("the token expires before it was issued")
	}
	if _, ok := t.claims["nbf"]; !ok {
		return nil
	}
	nbf, err := numericDate(t.claims, "nbf")
	if err != nil {
		return err
	}
	if nbf.After(now.Add(leeway)) {
		return badToken("the token is not valid before %s from now: wait, or set the clocks right", ago(nbf.Sub(now)))
	}
	return nil
}

// numericDate reads a claim of RFC 7519's kind, seconds since 1970 with or without a fraction.
func numericDate(claims map[string]any, name string) (time.Time, error) {
	number, ok := claims[name].(json.Number)
	if !ok {
		if claims[name] == nil {
			return time.Time{}, badToken("the token has no %s claim, which every ID token has: send that one, or have its issuer add the claim", name)
		}
		return time.Time{}, badToken("the token's %s claim is not a number", name)
	}
	seconds, err := number.Float64()
	// Up to the year 9999: beyond, arithmetic on it would overflow.
	if err != nil || math.IsNaN(seconds) || seconds < 0 || seconds > 253402300799 {
		return time.Time{}, badToken("the token's %s claim is no time", name)
	}
	whole, fraction := math.Modf(seconds)
	return time.Unix(int64(whole), int64(fraction*1e9)), nil
}

func ago(d time.Duration) time.Duration {
	if d < time.Minute {
		return d.Round(time.Second)
	}
	if d < time.Hour {
		return d.Truncate(time.Second)
	}
	return d.Truncate(time.Minute)
}

// checkAudience fills in audience, of which at least one is ours.
func (t *token) checkAudience() error {
	switch aud := t.claims["aud"].(type) {
	case string:
		t.audience = []string{aud}
	case []any:
		for _, v := range aud {
			s, ok := v.(string)
			if !ok {
				return badToken("the token's aud claim is neither a string nor a list of strings")
			}
			t.audience = append(t.audience, s)
		}
	case nil:
	default:
		return badToken("the token's aud claim is neither a string nor a list of strings")
	}
	if len(t.audience) == 0 {
		return badToken("the token has no aud claim: ask its issuer for one with audience %s", joined(t.issuer.audiences))
	}
	for _, audience := range t.audience {
		if slices.Contains(t.issuer.audiences, audience) {
			return nil
		}
	}
	return badToken("the token is for audience %.200s, this proxy accepts %s: ask the issuer for a token with that audience",
		joined(t.audience), joined(t.issuer.audiences))
}

// checkSignature lets go-oidc verify the token by our keys.
func (t *token) checkSignature(ctx context.Context, raw string) error {
	checked, err := t.verifier().Verify(ctx, raw)
	if t.err != nil {
		return t.err
	}
	if err != nil || t.key == nil {
		return &Error{Kind: BadToken, Message: "the token does not verify", Err: err}
	}
	return t.agrees(checked.Issuer, checked.Subject, checked.Audience, checked.IssuedAt)
}

// verifier is go-oidc's, for this one token.
func (t *token) verifier() *oidc.IDTokenVerifier {
	return oidc.NewVerifier(t.issuer.name, t, &oidc.Config{
		SupportedSigningAlgs: t.issuer.algorithmNames,
		// Checked here: several audiences, leeway.
		SkipClientIDCheck: true,
		SkipExpiryCheck:   true,
	})
}

// agrees holds our reading of the claims against go-oidc's, whose decoder takes "Sub" for "sub".
func (t *token) agrees(issuer, subject string, audience []string, issued time.Time) error {
	if issuer != t.issuer.name || subject != t.subject || !slices.Equal(audience, t.audience) || issued.Unix() != t.issued.Unix() {
		return badToken("the token has a claim twice, in different spellings")
	}
	return nil
}

// VerifySignature implements oidc.KeySet for this one token.
func (t *token) VerifySignature(ctx context.Context, raw string) ([]byte, error) {
	var payload []byte
	payload, t.key, t.keys, t.err = t.issuer.keys.verify(ctx, t, raw)
	return payload, t.err
}

// checkParty refuses a token that was made for somebody else who is merely to show it to us as well. Where it is
// addressed to others too, azp has to say that it was made for us, unless the operator requires an azp himself.
func (t *token) checkParty() error {
	if !slices.ContainsFunc(t.audience, func(audience string) bool { return !slices.Contains(t.issuer.audiences, audience) }) {
		return nil
	}
	if t.issuer.requires("azp") {
		return nil
	}
	party, _ := t.claims["azp"].(string)
	switch {
	case party == "":
		return badToken("the token is for several audiences, %.200s, and has no azp claim that tells for whom it was made: ask for one with audience %s alone",
			joined(t.audience), joined(t.issuer.audiences))
	case !slices.Contains(t.issuer.audiences, party):
		return badToken("the token is for several audiences and its azp claim, %.200q, is not one that this proxy accepts: ask for one with audience %s alone",
			party, joined(t.issuer.audiences))
	}
	return nil
}

func (t *token) identity() (*Identity, error) {
	if t.subject == "" {
		return nil, badToken("the token has no sub claim")
	}
	id := &Identity{
		Issuer:     t.issuer.name,
		Subject:    t.subject,
		Audience:   t.audience,
		TokenID:    t.id,
		Method:     "bearer",
		IssuedAt:   t.issued,
		Expires:    t.expires,
		Claims:     t.claims,
		Attributes: t.issuer.attributes.of(t.claims),
	}
	switch {
	case t.issuer.session != "":
		// What the operator named MUST be there: a session called by something else could not be revoked.
		if id.Session = text(lookup(t.claims, t.issuer.session)); id.Session == "" {
			return nil, badToken("the token has no claim %s, which names its session", t.issuer.session)
		}
	case id.Attributes.Workspace != "":
		id.Session = id.Attributes.Workspace
	default:
		id.Session = t.subject
	}
	return id, nil
}

// joined lists names for a message.
func joined[S ~string](names []S) string {
	var b strings.Builder
	for n, name := range names {
		if n > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", string(name))
	}
	return b.String()
}
