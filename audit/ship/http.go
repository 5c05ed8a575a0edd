package ship

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// HTTP is what far ends that speak HTTP can be told besides.
type HTTP struct {
	Connection `yaml:",inline"`
	// TokenFile or TokenEnv is sent as a bearer token.
	TokenFile string `yaml:"token_file"`
	TokenEnv  string `yaml:"token_env"`
	// HeadersFile holds header lines, `Name: value`, to send with every request.
	HeadersFile string `yaml:"headers_file"`
}

func (h *HTTP) check(report func(path, problem string), name, address string) {
	if address == "" {
		report(name, "is missing: write its URL")
	} else if problem := h.checkURL(address, []string{"https"}, []string{"http"}); problem != "" {
		report(name, problem)
	}
	if h.TokenFile != "" && h.TokenEnv != "" {
		report("token_file", "token_file and token_env exclude each other")
	}
}

// poster posts bodies to one URL.
type poster struct {
	config HTTP
	url    string
	client *http.Client
}

func newPoster(c HTTP, address string) (*poster, error) {
	tlsConfig, err := c.tls()
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = tlsConfig
	transport.MaxIdleConnsPerHost = 1
	return &poster{config: c, url: address, client: &http.Client{
		Transport: transport,
		Timeout:   30 * time.Second,
		// A redirect would carry events, and the token, to where nobody configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// RetryAfter is an error of a far end that said when to come again.
type RetryAfter struct {
	error
	After time.Duration
}

func (e RetryAfter) Unwrap() error { return e.error }

func (p *poster) post(ctx context.Context, contentType string, body []byte, header http.Header) ([]byte, error) {
	encoded := body
	if len(body) > 1024 {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(body)
		z.Close()
		encoded = b.Bytes()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(encoded))
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("User-Agent", "sluice")
	if len(body) > 1024 {
		req.Header.Set("Content-Encoding", "gzip")
	}
	token, err := secret(p.config.TokenFile, p.config.TokenEnv)
	if err != nil {
		return nil, fmt.Errorf("read the token: %w", err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if err := p.addHeaders(req.Header); err != nil {
		return nil, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, withoutQuery(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	switch {
	case resp.StatusCode/100 == 2:
		return answer, nil
	case resp.StatusCode == http.StatusRequestEntityTooLarge:
		return nil, ErrTooLarge
	case resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusUnprocessableEntity:
		return nil, fmt.Errorf("answered %s: %w", resp.Status, ErrRefused)
	}
	// What else there is, 401 and 404 too, says nothing of the events: they wait until somebody has mended it.
	err = fmt.Errorf("answered %s", resp.Status)
	if seconds, parseErr := strconv.Atoi(resp.Header.Get("Retry-After")); parseErr == nil && seconds > 0 {
		return nil, RetryAfter{err, min(time.Duration(seconds)*time.Second, 5*time.Minute)}
	}
	return nil, err
}

// withoutQuery keeps what may be a secret in the configured URL out of messages.
func withoutQuery(err error) error {
	if e, ok := err.(*url.Error); ok {
		at, _, _ := strings.Cut(e.URL, "?")
		return fmt.Errorf("%s: %w", at, e.Err)
	}
	return err
}

func (p *poster) addHeaders(h http.Header) error {
	if p.config.HeadersFile == "" {
		return nil
	}
	raw, err := os.ReadFile(p.config.HeadersFile)
	if err != nil {
		return fmt.Errorf("read headers_file: %w", err)
	}
	n := 0
	for line := range strings.Lines(string(raw)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return fmt.Errorf("headers_file %s:%d is not `Name: value`", p.config.HeadersFile, n)
		}
		h.Set(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return nil
}

func (p *poster) Close() error {
	p.client.CloseIdleConnections()
	return nil
}
