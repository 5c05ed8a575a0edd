package world_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/sluice-s3/sluice/examples/world"
)

func start(t *testing.T, o world.Options) *world.World {
	t.Helper()
	o.Log = nil
	w, err := world.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Stop(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func TestAnAssumedRoleReadsAndWrites(t *testing.T) {
	for _, tls := range []bool{false, true} {
		w := start(t, world.Options{Buckets: []string{"artifacts"}, TLS: tls})
		client := w.Backends[0].Client(func(o *s3.Options) { o.Credentials = assume(w, "reader") })
		if _, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("artifacts"), Key: aws.String("a/b"), Body: bytes.NewReader([]byte("hello"))}); err != nil {
			t.Fatal(err)
		}
		got, err := w.S3Client().GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("artifacts"), Key: aws.String("a/b")})
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(got.Body)
		if err != nil || string(body) != "hello" {
			t.Fatalf("%q, %v", body, err)
		}
	}
}

func assume(w *world.World, role string, options ...func(*stscreds.AssumeRoleOptions)) aws.CredentialsProvider {
	client := sts.New(sts.Options{
		BaseEndpoint: &w.STS.URL,
		Region:       w.Region,
		HTTPClient:   w.HTTPClient(),
		Credentials:  credentials.NewStaticCredentialsProvider(w.BaseKey.AccessKeyID, w.BaseKey.SecretAccessKey, ""),
	})
	return stscreds.NewAssumeRoleProvider(client, world.RoleARN(role), options...)
}
