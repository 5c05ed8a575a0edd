package policy

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// The keys of the input, made once: their terms are never changed, so every evaluation shares them.
var (
	keyAction    = ast.StringTerm("action")
	keyOperation = ast.StringTerm("operation")
	keyBucket    = ast.StringTerm("bucket")
	keyKey       = ast.StringTerm("key")
	keyVersionID = ast.StringTerm("version_id")
	keyPrefix    = ast.StringTerm("prefix")
	keyDelimiter = ast.StringTerm("delimiter")
	keyBackend   = ast.StringTerm("backend")
	keyIdentity  = ast.StringTerm("identity")
	keyRequest   = ast.StringTerm("request")

	keyAttributes    = ast.StringTerm("attributes")
	keyID            = ast.StringTerm("id")
	keyTime          = ast.StringTerm("time")
	keyMethod        = ast.StringTerm("method")
	keyHost          = ast.StringTerm("host")
	keySourceIP      = ast.StringTerm("source_ip")
	keySecure        = ast.StringTerm("secure")
	keyUserAgent     = ast.StringTerm("user_agent")
	keyContentLength = ast.StringTerm("content_length")
	keyHeaders       = ast.StringTerm("headers")
	keyQuery         = ast.StringTerm("query")

	emptyString = ast.StringTerm("")
	emptyObject = ast.ObjectTerm()
)

func nonNil(m map[string]any) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	return m
}

// requestTerm is `input.request`.
func requestTerm(r *Request) *ast.Term {
	return ast.ObjectTerm(
		ast.Item(keyID, stringTerm(r.ID)),
		ast.Item(keyTime, stringTerm(r.Time.UTC().Format(time.RFC3339))),
		ast.Item(keyMethod, stringTerm(r.Method)),
		ast.Item(keyHost, stringTerm(r.Host)),
		ast.Item(keySourceIP, stringTerm(r.SourceIP)),
		ast.Item(keySecure, ast.InternedTerm(r.Secure)),
		ast.Item(keyUserAgent, stringTerm(r.UserAgent)),
		ast.Item(keyContentLength, numberTerm(r.ContentLength)),
		ast.Item(keyHeaders, stringMapTerm(r.Headers)),
		ast.Item(keyQuery, stringMapTerm(r.Query)),
	)
}

// accessInput is the input for one access of a question.
func accessInput(a *Access, operation, identity, request *ast.Term) *ast.Term {
	items := [10][2]*ast.Term{
		{keyAction, stringTerm(a.Action)},
		{keyOperation, operation},
		{keyBucket, stringTerm(a.Bucket)},
		{keyVersionID, stringTerm(a.VersionID)},
		{keyPrefix, stringTerm(a.Prefix)},
		{keyDelimiter, stringTerm(a.Delimiter)},
		{keyBackend, stringTerm(a.Backend)},
		{keyIdentity, identity},
		{keyRequest, request},
		{keyKey, nil},
	}
	// An access without a key has none, rather than an empty one: no rule about keys can then hold for it.
	n := 9
	if a.Key != "" {
		items[n][1] = stringTerm(a.Key)
		n++
	}
	return ast.ObjectTerm(items[:n]...)
}

func stringTerm(s string) *ast.Term {
	if s == "" {
		return emptyString
	}
	return ast.StringTerm(s)
}

func numberTerm(n int64) *ast.Term { return ast.NumberTerm(json.Number(strconv.FormatInt(n, 10))) }

func stringsTerm(list []string) *ast.Term {
	terms := make([]*ast.Term, len(list))
	for i, s := range list {
		terms[i] = ast.StringTerm(s)
	}
	return ast.ArrayTerm(terms...)
}

func stringMapTerm(m map[string]string) *ast.Term {
	if len(m) == 0 {
		return emptyObject
	}
	items := make([][2]*ast.Term, 0, len(m))
	for k, v := range m {
		items = append(items, ast.Item(ast.StringTerm(k), ast.StringTerm(v)))
	}
	return ast.ObjectTerm(items...)
}
