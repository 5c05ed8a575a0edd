package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// The Go libraries run in a process of their own, this program again, so that they are configured as any program is.

func goClient(ctx context.Context, library string) error {
	verbs := map[string]func(context.Context) (goVerbs, error){"aws-sdk-go-v2": awsGo, "minio-go": minioGo}[library]
	if verbs == nil {
		return fmt.Errorf("no library %q", library)
	}
	v, err := verbs(ctx)
	if err != nil {
		return err
	}
	lines := json.NewDecoder(os.Stdin)
	for {
		var args [3]string
		if err := lines.Decode(&args); err != nil {
			return nil // the end
		}
		out, err := v.do(args[0], args[1], args[2])
		answer := map[string]any{"out": out}
		if err != nil {
			answer["error"] = err.Error()
		}
		if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
			return err
		}
	}
}

func (v goVerbs) do(verb, a, b string) (any, error) {
	switch verb {
	case "put":
		return nil, v.put(a, b)
	case "get":
		return nil, v.get(a, b)
	case "copy":
		return nil, v.copy(a, b)
	case "delete":
		return nil, v.delete(a)
	case "list":
		return v.list(a)
	case "presign":
		return v.presign(a)
	case "who":
		return v.who()
	}
	return nil, fmt.Errorf("no verb %q", verb)
}

type goVerbs struct {
	put, get, copy func(string, string) error
	delete         func(string) error
	list           func(string) ([]string, error)
	presign        func(string) (string, error)
	who            func() (string, error)
}

func awsGo(ctx context.Context) (v goVerbs, err error) {
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return v, err
	}
	client := s3.NewFromConfig(cfg, func(o *s3.Options) {
		if bearer := os.Getenv("AWS_BEARER_TOKEN_S3"); bearer != "" {
			o.Credentials = aws.AnonymousCredentials{}
			o.APIOptions = append(o.APIOptions, smithyhttp.SetHeaderValue("Authorization", "Bearer "+bearer))
		}
	})
	transfer := transfermanager.New(client, func(o *transfermanager.Options) {
		o.PartSizeBytes, o.MultipartUploadThreshold = 5<<20, 5<<20
	})
	name := aws.String(bucket)
	return goVerbs{
		put: func(file, key string) error {
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = transfer.UploadObject(ctx, &transfermanager.UploadObjectInput{Bucket: name, Key: &key, Body: f})
			return err
		},
		get: func(key, file string) error {
			f, err := os.Create(file)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = transfer.DownloadObject(ctx, &transfermanager.DownloadObjectInput{Bucket: name, Key: &key, WriterAt: f})
			return err
		},
		copy: func(from, to string) error { // the source is the caller's to encode, and Go has nothing that does it whole
			source := strings.ReplaceAll(url.PathEscape(bucket+"/"+from), "+", "%2B")
			_, err := client.CopyObject(ctx, &s3.CopyObjectInput{Bucket: name, Key: &to, CopySource: &source})
			return err
		},
		delete: func(key string) error {
			answer, err := client.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: name, Delete: &types.Delete{Objects: []types.ObjectIdentifier{{Key: &key}}}})
			if err == nil && len(answer.Errors) > 0 {
				err = fmt.Errorf("%s", aws.ToString(answer.Errors[0].Message))
			}
			return err
		},
		list: func(prefix string) (keys []string, err error) {
			pages := s3.NewListObjectsV2Paginator(client, &s3.ListObjectsV2Input{Bucket: name, Prefix: &prefix})
			for pages.HasMorePages() {
				page, err := pages.NextPage(ctx)
				if err != nil {
					return nil, err
				}
				for _, o := range page.Contents {
					keys = append(keys, *o.Key)
				}
			}
			return keys, nil
		},
		presign: func(key string) (string, error) {
			r, err := s3.NewPresignClient(client).PresignGetObject(ctx, &s3.GetObjectInput{Bucket: name, Key: &key}, s3.WithPresignExpires(10*time.Minute))
			if err != nil {
				return "", err
			}
			return r.URL, nil
		},
		who: func() (string, error) {
			answer, err := sts.NewFromConfig(cfg, func(o *sts.Options) { o.BaseEndpoint = aws.String(os.Getenv("AWS_ENDPOINT_URL_S3")) }).GetCallerIdentity(ctx, nil)
			if err != nil {
				return "", err
			}
			return *answer.Arn, nil
		},
	}, nil
}

// withBearer sends a token and no signature.
type withBearer struct {
	token string
	base  http.RoundTripper
}

func (b withBearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.base.RoundTrip(r)
}

func minioGo(ctx context.Context) (v goVerbs, err error) {
	endpoint, err := url.Parse(os.Getenv("AWS_ENDPOINT_URL_S3"))
	if err != nil {
		return v, err
	}
	secure := endpoint.Scheme == "https"
	transport, err := minio.DefaultTransport(secure)
	if err != nil {
		return v, err
	}
	options := &minio.Options{
		Secure: secure, Transport: transport,
		// The order of AWS's own SDKs, which minio-go leaves to the caller.
		Creds: credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{},
			&credentials.FileAWSCredentials{},
			&credentials.IAM{Endpoint: os.Getenv("AWS_ENDPOINT_URL_STS"), Client: &http.Client{Transport: transport}},
		}),
	}
	if token := os.Getenv("AWS_BEARER_TOKEN_S3"); token != "" {
		options.Creds, options.Transport = credentials.NewStaticV4("", "", ""), withBearer{token, transport}
	}
	client, err := minio.New(endpoint.Host, options)
	if err != nil {
		return v, err
	}
	return goVerbs{
		put: func(file, key string) error {
			_, err := client.FPutObject(ctx, bucket, key, file, minio.PutObjectOptions{PartSize: 5 << 20})
			return err
		},
		get: func(key, file string) error {
			return client.FGetObject(ctx, bucket, key, file, minio.GetObjectOptions{})
		},
		copy: func(from, to string) error {
			_, err := client.CopyObject(ctx, minio.CopyDestOptions{Bucket: bucket, Object: to}, minio.CopySrcOptions{Bucket: bucket, Object: from})
			return err
		},
		delete: func(key string) error {
			objects := make(chan minio.ObjectInfo, 1)
			objects <- minio.ObjectInfo{Key: key}
			close(objects)
			for e := range client.RemoveObjects(ctx, bucket, objects, minio.RemoveObjectsOptions{}) {
				return e.Err
			}
			return nil
		},
		list: func(prefix string) (keys []string, err error) {
			for o := range client.ListObjects(ctx, bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
				if o.Err != nil {
					return nil, o.Err
				}
				keys = append(keys, o.Key)
			}
			return keys, nil
		},
		presign: func(key string) (string, error) {
			u, err := client.PresignedGetObject(ctx, bucket, key, 10*time.Minute, nil)
			if err != nil {
				return "", err
			}
			return u.String(), nil
		},
	}, nil
}

// linked is the version of a module that this program is built with.
func linked(module string) string {
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, d := range info.Deps {
			if d.Path == module {
				return d.Version
			}
		}
	}
	return "unknown"
}
