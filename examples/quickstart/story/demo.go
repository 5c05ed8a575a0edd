package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/sluice-s3/sluice/audit"
)

// demo tells the story, and checks it.
func (q *quickstart) demo(ctx context.Context) error {
	sent := &ledger{next: http.DefaultTransport}
	d := &demo{quickstart: q, sent: sent, http: &http.Client{Transport: sent}}
	steps := []struct {
		title string
		do    func(context.Context) error
	}{
		{"A workspace puts an object. Its token is all it sends.", d.put},
		{"It reads the object back.", d.get},
		{"Another project's workspace may not, and is told why.", d.otherProject},
		{"Without a token nobody comes in, and is told how to.", d.nobody},
		{"The AWS SDK, unmodified, by environment variables alone: put, list.", d.sdk},
		{"Six megabytes in two parts, read back by a presigned URL.", d.multipart},
		{"Any old client: the token as session token, beside any key.", d.sessionToken},
		{"Two objects are deleted in one request. Of the other project's, none is.", d.delete},
		{"What AWS was asked for: a session for this workspace, held to what policy said.", d.assumed},
		{"Around the proxy there is no way in: what a workspace holds is worth nothing at S3.", d.around},
		{"The workspace is revoked: its token and its sessions end within a second.", d.revoke},
		{"One line was written down for each request, and the chain of lines is whole.", d.audit},
	}
	for _, step := range steps {
		d.lines = nil
		err := step.do(ctx)
		if err != nil {
			q.bad(step.title)
		} else {
			q.good(step.title)
		}
		for _, line := range d.lines {
			q.result(line)
		}
		if err != nil {
			return fmt.Errorf("%w\nthe proxy logged:\n%s", err, q.proxy.Log())
		}
	}
	q.text("All of it was right.")
	return nil
}

type demo struct {
	*quickstart
	sent  *ledger
	http  *http.Client
	sdk3  *s3.Client
	lines []string // what came back in this step
}

func (d *demo) say(format string, args ...any) {
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

// ledger counts the requests that went to the proxy by what came back, to hold the audit log against.
type ledger struct {
	next http.RoundTripper
	mu   sync.Mutex
	all  map[int]int // by status
}

func (l *ledger) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := l.next.RoundTrip(r)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[int]int{}
	}
	if err == nil {
		l.all[response.StatusCode]++
	}
	return response, err
}

func (l *ledger) count() (all int, byStatus map[int]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.all {
		all += n
	}
	return all, maps.Clone(l.all)
}

// refusal is an error as S3 writes it.
type refusal struct{ Code, Message, RequestId string }

// send sends a request with nothing but a token, "" for not even that.
func (d *demo) send(ctx context.Context, method, path, token, body string) (status int, answer string, err error) {
	request, err := http.NewRequestWithContext(ctx, method, d.proxy.URL+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := d.http.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	return response.StatusCode, string(data), err
}

// refused sends a request that must be refused.
func (d *demo) refused(ctx context.Context, path, token, code string, words ...string) error {
	status, answer, err := d.send(ctx, "GET", path, token, "")
	if err != nil {
		return err
	}
	var r refusal
	if err := xml.Unmarshal([]byte(answer), &r); err != nil {
		return fmt.Errorf("GET %s: %d, and no error of S3's: %q", path, status, answer)
	}
	d.say("GET %s → %d %s: %s", path, status, r.Code, r.Message)
	if status != http.StatusForbidden || r.Code != code {
		return fmt.Errorf("GET %s: not 403 %s", path, code)
	}
	for _, word := range words {
		if !strings.Contains(r.Message, word) {
			return fmt.Errorf("the message does not say %q", word)
		}
	}
	return nil
}

const hello = "/" + bucket + "/web/hello.txt"

func (d *demo) put(ctx context.Context) error {
	status, answer, err := d.send(ctx, "PUT", hello, d.web.token, "hello\n")
	d.say("PUT %s → %d", hello, status)
	return errors.Join(err, mustBe(status == 200, "%d %s", status, answer))
}

func (d *demo) get(ctx context.Context) error {
	status, answer, err := d.send(ctx, "GET", hello, d.web.token, "")
	d.say("GET %s → %d %q", hello, status, answer)
	return errors.Join(err, mustBe(status == 200 && answer == "hello\n", "%d %s", status, answer))
}

func (d *demo) otherProject(ctx context.Context) error {
	return d.refused(ctx, hello, d.data.token, "AccessDenied", d.data.user, "s3:GetObject", "web/hello.txt")
}

func (d *demo) nobody(ctx context.Context) error {
	return d.refused(ctx, hello, "", "AccessDenied", "Authorization: Bearer")
}

func (d *demo) sdk(ctx context.Context) error {
	// In this process rather than in the shell, but no more than a shell would set.
	for _, v := range append(d.web.env(d.proxy.URL), "AWS_CONFIG_FILE="+os.DevNull, "AWS_SHARED_CREDENTIALS_FILE="+os.DevNull) {
		name, value, _ := strings.Cut(v, "=")
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	for _, name := range []string{"AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} {
		os.Unsetenv(name)
	}
	c, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(d.http))
	if err != nil {
		return err
	}
	d.sdk3 = s3.NewFromConfig(c)
	if _, err := d.sdk3.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("web/sdk.txt"), Body: strings.NewReader("hello from the SDK\n")}); err != nil {
		return err
	}
	list, err := d.sdk3.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String(bucket), Prefix: aws.String("web/")})
	if err != nil {
		return err
	}
	var keys []string
	for _, o := range list.Contents {
		keys = append(keys, *o.Key)
	}
	d.say("PutObject web/sdk.txt → ok; ListObjectsV2 web/ → %s", strings.Join(keys, ", "))
	_, err = d.sdk3.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String(bucket)})
	d.say("ListObjectsV2 of the whole bucket → %s", apiError(err))
	return errors.Join(
		mustBe(slices.Equal(keys, []string{"web/hello.txt", "web/sdk.txt"}), "listed %q", keys),
		mustBe(strings.Contains(fmt.Sprint(err), "AccessDenied"), "the whole bucket was listed: %v", err),
	)
}

func (d *demo) multipart(ctx context.Context) error {
	key := aws.String("web/big.bin")
	content := bytes.Repeat([]byte("0123456789abcdef"), 6<<16)
	upload, err := d.sdk3.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: aws.String(bucket), Key: key, ChecksumAlgorithm: types.ChecksumAlgorithmCrc32})
	if err != nil {
		return err
	}
	var parts []types.CompletedPart
	for i, part := range [][]byte{content[:5<<20], content[5<<20:]} {
		number := aws.Int32(int32(i + 1))
		done, err := d.sdk3.UploadPart(ctx, &s3.UploadPartInput{Bucket: aws.String(bucket), Key: key, UploadId: upload.UploadId, PartNumber: number, Body: bytes.NewReader(part)})
		if err != nil {
			return err
		}
		parts = append(parts, types.CompletedPart{ETag: done.ETag, PartNumber: number, ChecksumCRC32: done.ChecksumCRC32})
	}
	if _, err := d.sdk3.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: aws.String(bucket), Key: key, UploadId: upload.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	}); err != nil {
		return err
	}
	link, err := s3.NewPresignClient(d.sdk3).PresignGetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(bucket), Key: key})
	if err != nil {
		return err
	}
	response, err := d.http.Get(link.URL)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	back, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	path, _, _ := strings.Cut(response.Request.URL.RequestURI(), "?")
	d.say("CreateMultipartUpload, UploadPart, UploadPart, CompleteMultipartUpload → ok")
	d.say("GET %s?X-Amz-Signature=… → %d, %d bytes", path, response.StatusCode, len(back))
	return mustBe(response.StatusCode == 200 && bytes.Equal(back, content), "%s, and not the bytes that were put", response.Status)
}

func (d *demo) sessionToken(ctx context.Context) error {
	client := s3.New(s3.Options{
		Region: "us-east-1", BaseEndpoint: &d.proxy.URL, UsePathStyle: true, HTTPClient: d.http,
		Credentials: credentials.NewStaticCredentialsProvider("any", "any", d.web.token),
	})
	head, err := client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: aws.String("web/big.bin")})
	if err != nil {
		return err
	}
	d.say("HeadObject web/big.bin → %d bytes", *head.ContentLength)
	return mustBe(*head.ContentLength == 6<<20, "%d bytes", *head.ContentLength)
}

func (d *demo) delete(ctx context.Context) error {
	theirs := aws.String("data/secret.txt")
	status, answer, err := d.send(ctx, "PUT", "/"+bucket+"/"+*theirs, d.data.token, "secret\n")
	if err := errors.Join(err, mustBe(status == 200, "%d %s", status, answer)); err != nil {
		return err
	}
	deleted, err := d.sdk3.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: aws.String(bucket), Delete: &types.Delete{Objects: []types.ObjectIdentifier{
		{Key: aws.String("web/sdk.txt")}, {Key: aws.String("web/big.bin")}, {Key: theirs},
	}}})
	if err != nil {
		return err
	}
	for _, o := range deleted.Deleted {
		d.say("%s → deleted", *o.Key)
	}
	for _, o := range deleted.Errors {
		d.say("%s → %s: %s", *o.Key, *o.Code, aws.ToString(o.Message))
	}
	left, err := d.world.S3Client().ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String(bucket)})
	if err != nil {
		return err
	}
	return mustBe(len(deleted.Deleted) == 2 && len(deleted.Errors) == 1 && len(left.Contents) == 2, "%d deleted, %d refused, %d left", len(deleted.Deleted), len(deleted.Errors), len(left.Contents))
}

func (d *demo) assumed(context.Context) error {
	calls := d.world.STS.Calls()
	if len(calls) == 0 {
		return errors.New("the STS was never asked")
	}
	c := calls[0]
	d.say("AssumeRole %s as %q, on behalf of %s, project=%s", c.RoleARN, c.RoleSessionName, c.SourceIdentity, c.Tags["project"])
	d.say("held to %s", c.Policy)
	d.say("%d calls for all of the above: sessions are kept and used again", len(calls))
	return mustBe(c.Error == "" && c.SourceIdentity == d.web.user && c.Tags["project"] == d.web.project && strings.Contains(c.Policy, bucket) && len(calls) < 10, "%+v, %d calls", c, len(calls))
}

func (d *demo) around(ctx context.Context) error {
	held, err := d.sdk3.Options().Credentials.Retrieve(ctx)
	if err != nil {
		return err
	}
	direct := d.world.S3Client(func(o *s3.Options) {
		o.Credentials = credentials.NewStaticCredentialsProvider(held.AccessKeyID, held.SecretAccessKey, held.SessionToken)
		o.RetryMaxAttempts = 1
	})
	_, err = direct.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(bucket), Key: aws.String("web/hello.txt")})
	d.say("GetObject at %s → %s", d.world.Backends[0].URL, apiError(err))
	return mustBe(err != nil, "the S3 server took a key of the proxy's")
}

func (d *demo) revoke(ctx context.Context) error {
	// Not by d.http: the admin listener is not audited.
	response, err := http.Post(d.proxy.AdminURL+"/revocations", "application/json", strings.NewReader(`{"session": "`+d.web.name+`"}`))
	if err != nil {
		return err
	}
	response.Body.Close()
	d.say(`POST %s/revocations {"session": "%s"} → %d`, d.proxy.AdminURL, d.web.name, response.StatusCode)
	if err := mustBe(response.StatusCode/100 == 2, "%s", response.Status); err != nil {
		return err
	}
	if err := d.refused(ctx, hello, d.web.token, "AccessDenied", "revoked"); err != nil {
		return err
	}
	_, err = d.sdk3.HeadObject(ctx, &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: aws.String("web/hello.txt")})
	if err == nil {
		return errors.New("the SDK's session goes on")
	}
	status, answer, err := d.send(ctx, "GET", "/"+bucket+"/data/secret.txt", d.data.token, "")
	d.say("%s, whom nobody revoked: GET /%s/data/secret.txt → %d", d.data.name, bucket, status)
	return errors.Join(err, mustBe(status == 200, "%d %s", status, answer))
}

func (d *demo) audit(ctx context.Context) error {
	want, statuses := d.sent.count()
	if err := d.proxy.Stop(); err != nil {
		return fmt.Errorf("the proxy did not end as it should: %w", err)
	}
	events, err := d.proxy.Events()
	if err != nil {
		return err
	}
	for _, e := range events {
		statuses[e.Status]--
	}
	maps.DeleteFunc(statuses, func(_, n int) bool { return n == 0 })
	d.say("%d requests, %d lines", want, len(events))
	if err := mustBe(want == len(events) && len(statuses) == 0, "statuses that were seen without a line (or the other way round): %v", statuses); err != nil {
		return err
	}
	refusal := slices.IndexFunc(events, func(e audit.Event) bool { return e.Identity.Session == d.data.name && e.Outcome == audit.Refused })
	if refusal < 0 {
		return errors.New("no line about the other project's refusal")
	}
	e := events[refusal]
	if err := mustBe(e.Operation == "GetObject" && e.Key == "web/hello.txt" && e.Status == 403 && !e.Decision.Allow && len(e.Decision.Reasons) > 0 && e.Backend.Status == 0, "%+v", e); err != nil {
		return err
	}
	d.say("line %d: %s of project %s, %s /%s/%s → %d %s, because %s", refusal+1, e.Identity.Session, d.data.project, e.Operation, e.Bucket, e.Key, e.Status, e.Outcome, strings.Join(e.Decision.Reasons, "; "))

	log, err := os.ReadFile(d.proxy.AuditFile)
	if err != nil {
		return err
	}
	for _, w := range []workspace{d.web, d.data} {
		signature := w.token[strings.LastIndexByte(w.token, '.')+1:]
		if err := mustBe(!bytes.Contains(log, []byte(signature)) && !strings.Contains(d.proxy.Log(), signature), "the token of %s was written down", w.name); err != nil {
			return err
		}
	}

	out, err := d.proxy.Run(ctx, "audit", "verify", d.proxy.AuditFile)
	d.say("proxy audit verify → %s", strings.TrimSpace(out))
	if err != nil {
		return err
	}
	return d.tamper(ctx)
}

// tamper changes one line, and sees that it is found.
func (d *demo) tamper(ctx context.Context) error {
	log, err := os.ReadFile(d.proxy.AuditFile)
	if err != nil {
		return err
	}
	changed := d.proxy.AuditFile + ".changed"
	if err := os.WriteFile(changed, bytes.Replace(log, []byte(d.data.user), []byte(d.web.user), 1), 0o600); err != nil {
		return err
	}
	out, err := d.proxy.Run(ctx, "audit", "verify", changed)
	if err == nil {
		return fmt.Errorf("a changed line was not found: %s", out)
	}
	first, _, _ := strings.Cut(out, "\n")
	d.say("with one name changed → %s", first)
	return nil
}

// apiError is an SDK's error without the SDK's own words.
func apiError(err error) string {
	_, message, ok := strings.Cut(fmt.Sprint(err), "api error ")
	if !ok {
		return fmt.Sprint(err)
	}
	return message
}

func mustBe(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}
