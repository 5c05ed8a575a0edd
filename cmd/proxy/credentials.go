package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"
)

type credentialsCommand struct {
	Endpoint     string        `required:"" placeholder:"URL" help:"The proxy: https://s3.example.com"`
	TokenFile    string        `placeholder:"F" xor:"token" required:"" help:"File that holds the workspace's OIDC token. This or --token-command."`
	TokenCommand string        `placeholder:"CMD" xor:"token" required:"" help:"Shell command that prints it."`
	CAFile       string        `name:"ca-file" placeholder:"F" help:"Trust this private CA (PEM) besides the system's."`
	Plaintext    bool          `help:"Send the token without TLS, also to another machine: only where the network is trusted."`
	Timeout      time.Duration `default:"30s" help:"For all of it."`
}

func (credentialsCommand) Example() string {
	return `# ~/.aws/config
[default]
endpoint_url = https://s3.example.com
credential_process = proxy credentials --endpoint https://s3.example.com --token-command "gitpod idp token --audience https://s3.example.com"`
}

// Run exchanges the token and prints what the SDKs' credential_process expects.
func (cmd credentialsCommand) Run(out io.Writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	endpoint, err := url.Parse(cmd.Endpoint)
	switch {
	case err != nil || endpoint.Host == "" || endpoint.Scheme != "https" && endpoint.Scheme != "http" || endpoint.User != nil:
		return misuse{errors.New("--endpoint is not a URL such as https://s3.example.com")} // nor shown: a password may be in it
	case endpoint.Scheme == "http" && !cmd.Plaintext && !isLoopback(endpoint.Hostname()):
		return misuse{fmt.Errorf("--endpoint %s would show the token to the network: give an https URL, or --plaintext where the network is trusted", cmd.Endpoint)}
	}
	token, err := cmd.token(ctx)
	if err != nil {
		return err
	}
	client, err := cmd.client()
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint.JoinPath("/-/credentials").String(), nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	answer, err := client.Do(request)
	if err != nil {
		hint := ""
		if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
			hint = "; where that is a private CA, name the file with its certificate by --ca-file"
		}
		return fmt.Errorf("ask %s for credentials: %w%s", cmd.Endpoint, err, hint)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", cmd.Endpoint, err)
	}
	var got struct {
		AccessKeyID     string `json:"AccessKeyId"`
		SecretAccessKey string
		Token           string
		Expiration      string
		Code            string `json:"code"`
		Message         string `json:"message"`
	}
	if err := json.Unmarshal(body, &got); err != nil {
		return fmt.Errorf("%s answered %s and no credentials: is it a Sluice endpoint?", cmd.Endpoint, answer.Status)
	}
	if answer.StatusCode != http.StatusOK || got.AccessKeyID == "" {
		return fmt.Errorf("%s refused (%s): %s: %s", cmd.Endpoint, answer.Status, got.Code, got.Message)
	}
	return json.NewEncoder(out).Encode(struct {
		Version         int
		AccessKeyId     string
		SecretAccessKey string
		SessionToken    string
		Expiration      string
	}{1, got.AccessKeyID, got.SecretAccessKey, got.Token, got.Expiration})
}

func (cmd credentialsCommand) token(ctx context.Context) (string, error) {
	var text []byte
	var err error
	if cmd.TokenFile != "" {
		if text, err = os.ReadFile(cmd.TokenFile); err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
	} else {
		shell := exec.CommandContext(ctx, "sh", "-c", cmd.TokenCommand)
		var complaint bytes.Buffer
		shell.Stderr = &complaint
		if text, err = shell.Output(); err != nil {
			if said := strings.TrimSpace(complaint.String()); said != "" {
				err = fmt.Errorf("%w: %s", err, said)
			}
			return "", fmt.Errorf("--token-command failed: %w", err)
		}
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return "", errors.New("the token is empty")
	}
	if strings.ContainsAny(token, " \t\r\n") {
		return "", errors.New("the token has white space in it: print the token alone")
	}
	return token, nil
}

// client follows no redirect: it would carry the token to another host.
func (cmd credentialsCommand) client() (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if cmd.CAFile != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		pem, err := os.ReadFile(cmd.CAFile)
		if err != nil {
			return nil, fmt.Errorf("--ca-file: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--ca-file: %s holds no certificate", cmd.CAFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}
