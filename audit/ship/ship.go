// Package ship delivers audit events to the systems that collect them. It knows their protocols and nothing of
// the log: who reads it, keeps the place and tries again is package audit.
package ship

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
)

// Message is one event to be delivered.
type Message struct {
	ID   string // by which the far end can tell an event that it has had
	Seq  uint64
	Time time.Time
	// Body is the event in the format that was configured, a JSON object on one line.
	Body []byte
	// What a protocol may tell beside the body.
	Outcome, Operation, Bucket, Session, TraceID string
}

// Sink is a far end.
type Sink interface {
	// Send delivers messages in their order, and returns how many of them, from the first on, the far end is done with
	// for good. Those that follow must be sent again; the far end may have had some of them.
	Send(ctx context.Context, messages []Message) (int, error)
	Close() error
}

// ErrTooLarge is Send's where the far end does not take so much at once: send less.
var ErrTooLarge = errors.New("the far end does not take so much at once")

// ErrRefused is Send's where the far end says that the same messages will never do. One of them may be to blame, or it
// takes none at all as things are: only what becomes of others can tell.
var ErrRefused = errors.New("the far end refuses what is in it")

// Rejected is Send's error, beside the number of all messages, where the far end has kept some of them out and does
// not say which: sending them again would repeat the others.
type Rejected struct {
	Messages int    // 0 = it has all of them, and something to say
	Why      string // in the far end's words
}

func (r Rejected) Error() string {
	return fmt.Sprintf("the far end rejected %d events: %s", r.Messages, r.Why)
}

// Formats of Message.Body.
const (
	Native      = "native"
	OCSF        = "ocsf"
	CloudEvents = "cloudevents"
)

// Config is one entry of `audit.ship`. Exactly one of OTLP, NATS, Kafka and Webhook.
type Config struct {
	// Name tells apart two far ends of a kind, and names the file that keeps the place [the kind].
	Name string `yaml:"name"`
	// Format is native [native], the event as it is in the log; ocsf, API Activity (class 6003); or cloudevents.
	// It may also be written within the far end's own settings.
	Format  string   `yaml:"format"`
	OTLP    *OTLP    `yaml:"otlp"`
	NATS    *NATS    `yaml:"nats"`
	Kafka   *Kafka   `yaml:"kafka"`
	Webhook *Webhook `yaml:"webhook"`
}

// Connection is what every far end can be told.
type Connection struct {
	Format string `yaml:"format"`
	// CAFile holds the certificates that the far end's must be signed by [the system's].
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile show the far end who we are.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// Plaintext allows a far end off this machine without TLS: who is on the way then reads every event [false].
	Plaintext bool `yaml:"plaintext"`
}

// Kind is otlp, nats, kafka or webhook; "" = none or several of them are set.
func (c *Config) Kind() string {
	var kinds []string
	for kind, set := range map[string]bool{"otlp": c.OTLP != nil, "nats": c.NATS != nil, "kafka": c.Kafka != nil, "webhook": c.Webhook != nil} {
		if set {
			kinds = append(kinds, kind)
		}
	}
	if len(kinds) != 1 {
		return ""
	}
	return kinds[0]
}

func (c *Config) connection() *Connection {
	switch {
	case c.OTLP != nil:
		return &c.OTLP.Connection
	case c.NATS != nil:
		return &c.NATS.Connection
	case c.Kafka != nil:
		return &c.Kafka.Connection
	case c.Webhook != nil:
		return &c.Webhook.Connection
	}
	return &Connection{}
}

// NameOrKind names the far end.
func (c *Config) NameOrKind() string {
	if c.Name != "" {
		return c.Name
	}
	return c.Kind()
}

// BodyFormat is the format of message bodies.
func (c *Config) BodyFormat() string {
	if c.Format != "" {
		return c.Format
	}
	if f := c.connection().Format; f != "" {
		return f
	}
	return Native
}

// Check reports every problem of the entry, each with its path below it.
func (c *Config) Check(report func(path, problem string)) {
	kind := c.Kind()
	if kind == "" {
		report("", "must have exactly one of otlp, nats, kafka and webhook")
		return
	}
	if strings.ContainsFunc(c.Name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	}) {
		report("name", fmt.Sprintf("%q is part of a file's name: small letters, digits and dashes only", c.Name))
	}
	n := c.connection()
	if c.Format != "" && n.Format != "" {
		report("format", "is written twice")
	}
	switch c.BodyFormat() {
	case Native, OCSF, CloudEvents:
	default:
		report("format", fmt.Sprintf("%q is none of native, ocsf, cloudevents", c.BodyFormat()))
	}
	below := func(path, problem string) { report(strings.TrimSuffix(kind+"."+path, "."), problem) }
	if (n.CertFile == "") != (n.KeyFile == "") {
		below("cert_file", "cert_file and key_file go together")
	} else if _, err := n.tls(); err != nil {
		below("ca_file", err.Error())
	}
	switch {
	case c.OTLP != nil:
		c.OTLP.check(below)
	case c.NATS != nil:
		c.NATS.check(below)
	case c.Kafka != nil:
		c.Kafka.check(below)
	case c.Webhook != nil:
		c.Webhook.check(below)
	}
}

// Open makes the sink; it connects when something is sent. source names this log among others, such as those of
// the other replicas.
func Open(c Config, source string) (Sink, error) {
	switch {
	case c.OTLP != nil:
		return openOTLP(*c.OTLP, c.BodyFormat(), source)
	case c.NATS != nil:
		return openNATS(*c.NATS, c.BodyFormat(), source)
	case c.Kafka != nil:
		return openKafka(*c.Kafka, c.BodyFormat(), source)
	case c.Webhook != nil:
		return openWebhook(*c.Webhook, c.BodyFormat(), source)
	}
	return nil, errors.New("ship: must have exactly one of otlp, nats, kafka and webhook")
}

func (n *Connection) tls() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if n.CAFile != "" {
		pem, err := os.ReadFile(n.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file %s holds no certificate", n.CAFile)
		}
	}
	if n.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(n.CertFile, n.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("load cert_file and key_file: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// checkURL holds an address to what secure and plain schemes there are.
func (n *Connection) checkURL(raw string, secure, plain []string) (problem string) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return fmt.Sprintf("%q is no URL: write one such as %s://audit.example.com", raw, secure[0])
	}
	if u.User != nil {
		return "holds credentials: name them by file or environment variable"
	}
	for _, s := range secure {
		if u.Scheme == s {
			return ""
		}
	}
	for _, p := range plain {
		if u.Scheme == p {
			if n.Plaintext || loopback(u.Hostname()) {
				return ""
			}
			return fmt.Sprintf("%q is not encrypted: use %s://, or set plaintext: true if the network is trusted", raw, secure[0])
		}
	}
	return fmt.Sprintf("%q has an unknown scheme: use %s", raw, strings.Join(append(append([]string(nil), secure...), plain...), " or "))
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// secret is a credential by file or environment variable; a file is read each time, for it may be renewed.
func secret(file, env string) (string, error) {
	if env != "" {
		v := os.Getenv(env)
		if v == "" {
			return "", fmt.Errorf("environment variable %s is empty", env)
		}
		return v, nil
	}
	if file == "" {
		return "", nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(raw)), nil
}
