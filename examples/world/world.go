// Package world is everything that a workspace's storage needs, on loopback and in one call: an OIDC issuer, an STS
// that mints sessions, and a real S3 server (versitygw) that checks them. The quickstart and the integration tests live in it.
//
// The S3 server runs in a child process, which is this program again. So main and TestMain MUST call Main first:
//
//	func TestMain(m *testing.M) {
//		world.Main()
//		os.Exit(m.Run())
//	}
//
// It is no part of the proxy's program, and must not become one.
package world

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
)

// Account is the number of the AWS account that the world is.
const Account = "123456789012"

// Options are all optional.
type Options struct {
	Dir      string   // where objects and everything else are kept [a temporary directory, removed by Stop]
	Region   string   // [us-east-1]
	Backends int      // S3 servers, each with its own buckets [1]
	Buckets  []string // made on every S3 server
	Audience string   // of tokens that Token makes [https://s3.example.com]
	Roles    []Role   // that may be assumed [any of Account, without conditions and allowed everything]
	TLS      bool     // the S3 servers, the STS and the issuer speak https; clients need CAFile
	Issuer   oidctest.Options
	Log      io.Writer // what the S3 servers print [nowhere]
}

// World is what Start started.
type World struct {
	Dir      string // removed by Stop unless it was given
	Region   string
	Audience string
	Root     Key              // may do everything at the S3 servers, and nothing at the STS
	BaseKey  Key              // may assume roles, and do nothing at the S3 servers: what a proxy runs with
	Issuer   *oidctest.Issuer // whose tokens the STS trusts
	STS      *STS
	Backends []*Backend // S3 servers; at least one
	CAFile   string     // the CAs that signed the certificates of whatever here speaks https

	certificate *certificate
	tls         bool
	removeDir   bool
	http        *http.Client

	mu         sync.Mutex // guards all below
	configured int        // proxies
	started    []*Proxy
}

// Key is a long-term access key.
type Key struct{ AccessKeyID, SecretAccessKey string }

// Start starts a world. It ends with Stop, with ctx, or with the process, however that dies.
func Start(ctx context.Context, o Options) (_ *World, err error) {
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	if o.Audience == "" {
		o.Audience = "https://s3.example.com"
	}
	if o.Backends == 0 {
		o.Backends = 1
	}
	w := &World{
		Dir:      o.Dir,
		Region:   o.Region,
		Audience: o.Audience,
		Root:     newKey("AKIAROOT"),
		BaseKey:  newKey("AKIABASE"),
	}
	defer func() {
		if err != nil {
			w.Stop()
		}
	}()
	if w.Dir == "" {
		if w.Dir, err = os.MkdirTemp("", "sluice-"); err != nil {
			return nil, err
		}
		w.removeDir = true
	}
	if w.Dir, err = filepath.Abs(w.Dir); err != nil {
		return nil, err
	}
	o.Issuer.TLS = o.Issuer.TLS || o.TLS
	w.Issuer, w.tls = oidctest.New(o.Issuer), o.TLS
	if w.certificate, err = newCertificate(w.Dir); err != nil {
		return nil, err
	}
	authorities := append(slices.Clone(w.certificate.ca), w.Issuer.CertificatePEM()...)
	w.CAFile = filepath.Join(w.Dir, "ca.pem")
	if err := os.WriteFile(w.CAFile, authorities, 0o644); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authorities)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	w.http = &http.Client{Transport: transport}

	secrets := sessionKey(rand.Text())
	if w.STS, err = startSTS(w, secrets, o.Roles); err != nil {
		return nil, err
	}
	for i := range o.Backends {
		b, err := startBackend(ctx, w, fmt.Sprintf("s3-%d", i+1), secrets, o.Log)
		if err != nil {
			return nil, err
		}
		w.Backends = append(w.Backends, b)
		for _, name := range o.Buckets {
			if _, err := b.Client().CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &name}); err != nil {
				return nil, fmt.Errorf("make bucket %q: %w", name, err)
			}
		}
	}
	context.AfterFunc(ctx, func() { w.Stop() })
	return w, nil
}

// Stop ends what Start started, and removes what it wrote. It may be called more than once.
func (w *World) Stop() error {
	var errs []error
	w.mu.Lock()
	for _, p := range w.started {
		p.Kill() // those that are not needed any more have been stopped
	}
	w.mu.Unlock()
	for _, b := range w.Backends {
		errs = append(errs, b.Stop())
	}
	if w.STS != nil {
		errs = append(errs, w.STS.close())
	}
	if w.Issuer != nil {
		w.Issuer.Close()
	}
	if w.http != nil {
		w.http.CloseIdleConnections()
	}
	if w.removeDir {
		errs = append(errs, os.RemoveAll(w.Dir))
	}
	return errors.Join(errs...)
}

// HTTPClient trusts the world's certificates.
func (w *World) HTTPClient() *http.Client { return w.http }

// S3Client talks straight to the first S3 server, as root.
func (w *World) S3Client(options ...func(*s3.Options)) *s3.Client {
	return w.Backends[0].Client(options...)
}

// Token is a workspace's token: of this audience, for an hour, and with these claims besides. See oidctest.Issuer.Token.
func (w *World) Token(claims map[string]any, options ...oidctest.TokenOption) string {
	all := map[string]any{"aud": w.Audience}
	for name, value := range claims {
		all[name] = value
	}
	return w.Issuer.Token(all, options...)
}

// Workspace is a token with the claims that Ona gives to an environment, so that the issuer preset "ona" reads it.
func (w *World) Workspace(environment, project, user string) string {
	return w.Token(map[string]any{
		"sub":             "environment/" + environment,
		"environment_id":  environment,
		"project_id":      project,
		"organization_id": "acme",
		"creator_email":   user,
	})
}

// RoleARN is the ARN of a role of the world's account.
func RoleARN(name string) string { return "arn:aws:iam::" + Account + ":role/" + name }

// Client makes an S3 client for this server, as root unless an option says otherwise.
func (b *Backend) Client(options ...func(*s3.Options)) *s3.Client {
	root := credentials.NewStaticCredentialsProvider(b.world.Root.AccessKeyID, b.world.Root.SecretAccessKey, "")
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(b.URL),
		Region:       b.world.Region,
		Credentials:  root,
		HTTPClient:   b.world.http,
		UsePathStyle: true,
		// As the SDK does where its configuration is loaded, which is not done here.
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenSupported,
	}, options...)
}

func newKey(prefix string) Key {
	return Key{AccessKeyID: prefix + rand.Text()[:12], SecretAccessKey: rand.Text() + rand.Text()[:14]}
}
