package s3wire_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// The SDK is the reference for what S3 operations look like: it is generated from AWS's model. Every request here
// is one that it really made.

const domain = "s3.example.com"

var addressing = s3wire.Addressing{Domains: []string{domain}}

// sdkOperations is every operation of the SDK's client, by name.
func sdkOperations() map[string]reflect.Method {
	ops := map[string]reflect.Method{}
	client := reflect.TypeFor[*s3.Client]()
	for i := range client.NumMethod() {
		if m := client.Method(i); m.Type.NumIn() == 4 && strings.HasSuffix(m.Type.In(2).String(), m.Name+"Input") {
			ops[m.Name] = m
		}
	}
	return ops
}

func TestTableIsTheModel(t *testing.T) {
	var have []string
	for _, op := range s3wire.Operations() {
		if op.Name != "PreflightRequest" { // a browser's, and no operation of the model's
			have = append(have, op.Name)
		}
	}
	slices.Sort(have)
	want := slices.Sorted(maps.Keys(sdkOperations()))
	if !slices.Equal(have, want) {
		t.Errorf("the table has\n%v\nthe SDK\n%v", have, want)
	}
	if len(want) < 111 {
		t.Errorf("found only %d operations in the SDK", len(want))
	}
}

// wire is one request of the SDK's as it comes to a server.
type wire struct {
	host, target string
	method       string
	header       http.Header
	body         []byte
}

func (w *wire) request() *http.Request {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", w.method, w.target, w.host)
	_ = w.header.Write(&b)
	if w.header.Get("Content-Length") == "" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(w.body))
	}
	b.WriteString("\r\n")
	b.Write(w.body)
	r, err := http.ReadRequest(bufio.NewReader(&b))
	if err != nil {
		panic(fmt.Sprintf("%v in %q", err, b.String()))
	}
	return r
}

var errCaptured = errors.New("captured")

type capture struct{ last *wire }

func (c *capture) Do(r *http.Request) (*http.Response, error) {
	w := &wire{host: r.Host, target: r.URL.RequestURI(), method: r.Method, header: r.Header.Clone()}
	if w.host == "" {
		w.host = r.URL.Host
	}
	if r.Body != nil {
		w.body, _ = io.ReadAll(r.Body)
	}
	c.last = w
	return nil, errCaptured
}

func newSDK(pathStyle bool) (*s3.Client, *capture) {
	c := new(capture)
	return s3.New(s3.Options{
		Region: "eu-west-1", BaseEndpoint: aws.String("https://" + domain), UsePathStyle: pathStyle, HTTPClient: c,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "secret", SessionToken: "canary-session-token"}, nil
		}),
		Retryer: aws.NopRetryer{}, DisableS3ExpressSessionAuth: aws.Bool(true),
	}), c
}

// fill makes a value of type t with every member set.
func fill(t reflect.Type, name string, depth int) reflect.Value {
	v := reflect.New(t).Elem()
	switch t.Kind() {
	case reflect.Pointer:
		if t.Elem().Kind() == reflect.Struct && depth == 0 {
			return v
		}
		p := reflect.New(t.Elem())
		p.Elem().Set(fill(t.Elem(), name, depth-1))
		return p
	case reflect.String:
		switch name {
		case "Bucket":
			v.SetString("my-bucket")
		case "Key":
			v.SetString("a key/of+two/ü")
		case "CopySource", "RenameSource":
			v.SetString("my-bucket/source%20key")
		case "EncodingType":
			v.SetString("url")
		case "ContentMD5", "SSECustomerKeyMD5", "CopySourceSSECustomerKeyMD5":
			v.SetString("1B2M2Y8AsgTpgAmY7PhCfg==")
		case "ContentEncoding":
			v.SetString("gzip")
		case "ChecksumAlgorithm":
			v.SetString("SHA256")
		case "AnnotationDirective":
			v.SetString("EXCLUDE")
		case "PartNumberMarker":
			v.SetString("7")
		case "TaggingDirective", "MetadataDirective":
			v.SetString("REPLACE")
		default:
			v.SetString("v" + strings.ToLower(name))
		}
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(3)
	case reflect.Float32, reflect.Float64:
		v.SetFloat(1)
	case reflect.Struct:
		if t == reflect.TypeFor[time.Time]() {
			return reflect.ValueOf(time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC))
		}
		for i := range t.NumField() {
			if f := t.Field(i); f.IsExported() {
				v.Field(i).Set(fill(f.Type, f.Name, depth-1))
			}
		}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return reflect.ValueOf([]byte("bytes"))
		}
		if depth > 0 {
			v.Set(reflect.Append(v, fill(t.Elem(), name, depth-1)))
			if t.Elem().Kind() == reflect.String && strings.HasSuffix(name, "Attributes") {
				v.Set(reflect.Append(v, reflect.ValueOf("second").Convert(t.Elem())))
			}
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(t))
		v.SetMapIndex(reflect.ValueOf("some-Name"), reflect.ValueOf("some value"))
	case reflect.Interface:
		for _, member := range []any{
			strings.NewReader("hello"), &types.ObjectEncryptionMemberSSEKMS{Value: types.SSEKMSEncryption{KMSKeyArn: aws.String("arn")}},
			&types.AnalyticsFilterMemberPrefix{Value: "p"}, &types.MetricsFilterMemberPrefix{Value: "p"},
		} {
			if reflect.TypeOf(member).Implements(t) {
				return reflect.ValueOf(member)
			}
		}
	}
	return v
}

const deep = 30

// send lets the SDK send in, and returns what it sent. Members that it misses are filled in.
func send(t *testing.T, pathStyle bool, m reflect.Method, in reflect.Value) *wire {
	t.Helper()
	client, captured := newSDK(pathStyle)
	for range 10 {
		out := m.Func.Call([]reflect.Value{reflect.ValueOf(client), reflect.ValueOf(context.Background()), in})
		err, _ := out[1].Interface().(error)
		if errors.Is(err, errCaptured) {
			return captured.last
		}
		var invalid smithy.InvalidParamsError
		if !errors.As(err, &invalid) {
			t.Fatalf("%s: %v", m.Name, err)
		}
		for _, p := range invalid.Errs() {
			field, _, _ := strings.Cut(strings.TrimPrefix(p.(smithy.InvalidParamError).Field(), m.Name+"Input."), ".")
			field, _, _ = strings.Cut(field, "[")
			f := in.Elem().FieldByName(field)
			f.Set(fill(f.Type(), field, deep))
		}
	}
	t.Fatalf("%s is never satisfied", m.Name)
	return nil
}

// newInput is an input with what is needed and nothing else.
func newInput(m reflect.Method) reflect.Value {
	in := reflect.New(m.Type.In(2).Elem())
	for _, name := range []string{"Bucket", "Key", "UploadId"} {
		if f := in.Elem().FieldByName(name); f.IsValid() && name != "UploadId" {
			f.Set(fill(f.Type(), name, deep))
		}
	}
	if f := in.Elem().FieldByName("Body"); f.IsValid() {
		f.Set(fill(f.Type(), "Body", deep))
	}
	return in
}

// isBodyHeader tells the headers that WriteHeader leaves to the body's own.
func isBodyHeader(name string) bool {
	switch strings.ToLower(name) {
	case "x-amz-content-sha256", "x-amz-decoded-content-length", "x-amz-trailer", "x-amz-date", "x-amz-security-token", "x-amz-user-agent":
		return true
	}
	return false
}

// check parses w, and holds what is sent on to what the SDK sent.
func check(t *testing.T, what, name string, w *wire) *s3wire.Operation {
	t.Helper()
	op, err := addressing.Parse(w.request())
	if slices.Contains(s3wire.Unsupported(), name) {
		var e *s3wire.Error
		if !errors.As(err, &e) || e.Code != "NotImplemented" || !strings.Contains(e.Message, name) || op.Name != name {
			t.Errorf("%s: %v, want NotImplemented and its name", what, err)
		}
		return nil
	}
	if err != nil {
		t.Errorf("%s: %v\n%s %s\n%v", what, err, w.method, w.target, w.header)
		return nil
	}
	if op.Name != name {
		t.Errorf("%s was taken for %s: %s %s", what, op.Name, w.method, w.target)
		return nil
	}
	for _, a := range op.Accesses() {
		if a.Action == "" || a.Bucket == "" && name != "ListBuckets" {
			t.Errorf("%s needs %+v", what, a)
		}
	}

	sent := w.request()
	u := urlOf(op, &url.URL{Scheme: "https", Host: domain}, true)
	header := http.Header{}
	op.WriteHeader(header)
	want := sent.URL.Query()
	want.Del("x-id")
	if got := u.Query(); !reflect.DeepEqual(got, want) {
		t.Errorf("%s: query %v became %v", what, want, got)
	}
	for key, values := range sent.Header {
		value := strings.Join(values, ",")
		switch {
		case isBodyHeader(key) || key == "Content-Encoding" && value == "aws-chunked":
			if header.Get(key) != "" {
				t.Errorf("%s: %s went on", what, key)
			}
			continue
		case name == "DeleteObjects" && (strings.HasPrefix(key, "X-Amz-Checksum-") || key == "Content-Md5" || key == "X-Amz-Sdk-Checksum-Algorithm"):
			continue // its body is rebuilt, with a digest of its own
		case key == "X-Amz-Rename-Source" || key == "X-Amz-Copy-Source":
		case strings.HasPrefix(key, "X-Amz-") || key == "Content-Type" || strings.HasPrefix(key, "If-") || key == "Range" || key == "Expires" ||
			key == "Cache-Control" || key == "Content-Md5" || strings.HasPrefix(key, "Content-") && key != "Content-Length" && key != "Content-Encoding":
		default:
			continue
		}
		if got := header.Get(key); got != value {
			t.Errorf("%s: header %s: %q became %q", what, key, value, got)
		}
	}
	return op
}

func TestSDKRequests(t *testing.T) {
	for name, m := range sdkOperations() {
		t.Run(name, func(t *testing.T) {
			for _, pathStyle := range []bool{true, false} {
				bare := send(t, pathStyle, m, newInput(m))
				op := check(t, fmt.Sprintf("%s (path style %v)", name, pathStyle), name, bare)
				if op == nil {
					continue
				}
				if in := newInput(m).Elem(); in.FieldByName("Key").IsValid() && op.Key != "a key/of+two/ü" || in.FieldByName("Bucket").IsValid() && op.Bucket != "my-bucket" {
					t.Errorf("%s is addressed to %q, %q", name, op.Bucket, op.Key)
				}
				in := m.Type.In(2).Elem()
				for i := range in.NumField() {
					f := in.Field(i)
					if !f.IsExported() || f.Name == "Bucket" || f.Name == "Key" || f.Name == "ContentLength" {
						continue
					}
					with := newInput(m)
					with.Elem().Field(i).Set(fill(f.Type, f.Name, deep))
					check(t, name+" with "+f.Name, name, send(t, pathStyle, m, with))
				}
			}
		})
	}
}

// Presigners move x-amz-* headers into the query, where S3 reads them as headers all the same.
func TestSDKPresigned(t *testing.T) {
	for name, m := range sdkOperations() {
		in := newInput(m)
		for i := range in.Elem().NumField() {
			f := in.Elem().Type().Field(i)
			if f.IsExported() && f.Type.Kind() != reflect.Map && !strings.HasPrefix(f.Name, "Checksum") && f.Name != "ContentLength" && f.Name != "ContentEncoding" && f.Name != "ContentMD5" && f.Type.Kind() != reflect.Slice {
				in.Elem().Field(i).Set(fill(f.Type, f.Name, deep))
			}
		}
		w := send(t, true, m, in)
		r := w.request()
		for key := range r.Header {
			if isBodyHeader(key) || key == "Authorization" || strings.HasPrefix(key, "X-Amz-Checksum") || strings.HasPrefix(key, "Amz-") {
				r.Header.Del(key)
			}
		}
		out := &http.Request{Method: r.Method, URL: r.URL, Host: domain, Header: r.Header}
		out.URL.Scheme, out.URL.Host = "https", domain
		signed, headers, err := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).PresignHTTP(
			context.Background(), aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: "s", SessionToken: "canary-session-token"},
			out, "UNSIGNED-PAYLOAD", "s3", "eu-west-1", time.Unix(1795420800, 0))
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(signed)
		if err != nil {
			t.Fatal(err)
		}
		headers.Del("Host")
		headers.Del("Content-Length")
		p := &wire{host: domain, target: u.RequestURI() + "&X-Amz-Content-Sha256=UNSIGNED-PAYLOAD", method: r.Method, header: headers}
		if strings.Contains(u.RawQuery, "X-Amz-Content-Sha256") {
			p.target = u.RequestURI()
		}
		op, err := addressing.Parse(p.request())
		if slices.Contains(s3wire.Unsupported(), name) {
			continue
		}
		if err != nil || op.Name != name {
			t.Errorf("%s presigned: %v, %v\n%s", name, op, err, p.target)
			continue
		}
		sent := urlOf(op, &url.URL{Scheme: "https", Host: domain}, true)
		if strings.Contains(strings.ToLower(sent.RawQuery), "x-amz-") || strings.Contains(sent.String(), "canary") {
			t.Errorf("%s: the signature went on: %s", name, sent)
		}
		have := http.Header{}
		op.WriteHeader(have)
		for key, values := range r.Header {
			slices.Sort(values) // as the presigner does
			if strings.HasPrefix(key, "X-Amz-") && !strings.HasSuffix(key, "-Source") && have.Get(key) != strings.Join(values, ",") &&
				!(name == "DeleteObjects" && key == "X-Amz-Sdk-Checksum-Algorithm") {
				t.Errorf("%s: %s: %q became %q", name, key, values, have.Get(key))
			}
		}
	}
}

// observed is the x-amz-* headers and the query parameters that the SDK ever sends for each operation, and a request
// of each with nothing that is not needed.
func observed(t *testing.T) (bare map[string]*wire, headers, params map[string]map[string]string) {
	bare, headers, params = map[string]*wire{}, map[string]map[string]string{}, map[string]map[string]string{}
	for name, m := range sdkOperations() {
		headers[name], params[name] = map[string]string{}, map[string]string{}
		note := func(w *wire) *wire {
			for key, values := range w.header {
				if strings.HasPrefix(key, "X-Amz-") && !isBodyHeader(key) && !strings.HasPrefix(key, "X-Amz-Meta-") {
					headers[name][key] = strings.Join(values, ",")
				}
			}
			for key, values := range w.request().URL.Query() {
				params[name][key] = values[0]
			}
			return w
		}
		bare[name] = note(send(t, true, m, newInput(m)))
		in := m.Type.In(2).Elem()
		for i := range in.NumField() {
			if f := in.Field(i); f.IsExported() && f.Name != "Bucket" && f.Name != "Key" && f.Name != "ContentLength" {
				with := newInput(m)
				with.Elem().Field(i).Set(fill(f.Type, f.Name, deep))
				note(send(t, true, m, with))
			}
		}
	}
	return
}

// What the model has on an operation is known there, and what it has only elsewhere is refused.
func TestT06HeadersOfTheModel(t *testing.T) {
	bare, headers, params := observed(t)
	allHeaders, allParams := map[string]string{}, map[string]string{}
	for name := range headers {
		maps.Copy(allHeaders, headers[name])
		maps.Copy(allParams, params[name])
	}
	if len(allHeaders) < 80 || len(allParams) < 70 {
		t.Fatalf("the SDK sends only %d headers and %d parameters", len(allHeaders), len(allParams))
	}
	for name, w := range bare {
		if slices.Contains(s3wire.Unsupported(), name) {
			continue
		}
		for key, value := range allHeaders {
			if strings.HasSuffix(key, "-Source") || strings.HasPrefix(key, "X-Amz-Request-") && key != "X-Amz-Request-Payer" || strings.HasPrefix(key, "X-Amz-Fwd-") {
				continue // these make it another operation: T01
			}
			r := w.request()
			r.Header.Set(key, value)
			op, err := addressing.Parse(r)
			_, modelled := headers[name][key]
			if strings.HasPrefix(key, "X-Amz-Checksum-") && headers[name]["X-Amz-Sdk-Checksum-Algorithm"] != "" && key != "X-Amz-Checksum-Type" && key != "X-Amz-Checksum-Mode" && key != "X-Amz-Checksum-Algorithm" {
				modelled = true // the value of the algorithm that it may choose
			}
			var e *s3wire.Error
			switch {
			case modelled && err != nil:
				t.Errorf("%s of %s: %v", key, name, err)
			case !modelled && err == nil:
				t.Errorf("%s on %s passes", key, name)
			case !modelled && (!errors.As(err, &e) || e.Code != "InvalidRequest" || !strings.Contains(e.Message, strings.ToLower(key))):
				t.Errorf("%s on %s: %v, which does not name it", key, name, err)
			case modelled && op.Name != name:
				t.Errorf("%s makes %s a %s", key, name, op.Name)
			}
		}
		for key, value := range allParams {
			r := w.request()
			if r.URL.Query().Has(key) {
				continue
			}
			r.RequestURI += map[bool]string{true: "&", false: "?"}[strings.Contains(r.RequestURI, "?")] + key + "=" + url.QueryEscape(value)
			op, err := addressing.Parse(r)
			if _, modelled := params[name][key]; modelled && (err != nil || op.Name != name) {
				t.Errorf("?%s of %s: %v, %v", key, name, op, err)
			} else if !modelled && key != "x-id" && err == nil && op.Name == name {
				t.Errorf("?%s on %s passes", key, name)
			}
		}
	}
}
