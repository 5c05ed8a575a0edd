package ship

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// Kafka produces each event to a topic. All events of one log have one key, and so are in one partition, in order;
// the header id is the event's.
type Kafka struct {
	Brokers []string `yaml:"brokers"`
	Topic   string   `yaml:"topic"`
	// TLS speaks TLS to the brokers; it goes without saying where ca_file or cert_file is set [false].
	TLS bool `yaml:"tls"`
	// SASL names us to the brokers.
	SASL       *SASL `yaml:"sasl"`
	Connection `yaml:",inline"`
}

// SASL is a user and password for Kafka.
type SASL struct {
	// Mechanism is plain, scram-sha-256 or scram-sha-512 [scram-sha-512].
	Mechanism    string `yaml:"mechanism"`
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"`
	PasswordEnv  string `yaml:"password_env"`
}

func (k *Kafka) secure() bool { return k.TLS || k.CAFile != "" || k.CertFile != "" }

func (k *Kafka) check(report func(path, problem string)) {
	if len(k.Brokers) == 0 {
		report("brokers", "is missing: write at least one, such as kafka.example.com:9093")
	}
	for i, broker := range k.Brokers {
		host, _, err := net.SplitHostPort(broker)
		if err != nil {
			report(fmt.Sprintf("brokers[%d]", i), fmt.Sprintf("%q is not host:port", broker))
		} else if !k.secure() && !k.Plaintext && !loopback(host) {
			report(fmt.Sprintf("brokers[%d]", i), "is not encrypted: set tls: true, or plaintext: true if the network is trusted")
		}
	}
	if k.Topic == "" {
		report("topic", "is missing: name the topic")
	}
	checkName(k.Topic, topicName, "topic", "letters, digits, dots, dashes and underscores", report)
	if s := k.SASL; s != nil {
		switch s.Mechanism {
		case "", "plain", "scram-sha-256", "scram-sha-512":
		default:
			report("sasl.mechanism", fmt.Sprintf("%q is none of plain, scram-sha-256, scram-sha-512", s.Mechanism))
		}
		if s.Username == "" {
			report("sasl.username", "is missing")
		}
		if (s.PasswordFile == "") == (s.PasswordEnv == "") {
			report("sasl.password_file", "set one of password_file and password_env")
		}
	}
}

type kafka struct {
	config         Kafka
	format, source string
	options        []kgo.Opt
	client         *kgo.Client // nil = to be made
	refused        atomic.Pointer[error]
}

// OnBrokerConnect keeps why no broker can be reached, which the client's own errors do not tell.
func (k *kafka) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	switch {
	case err == nil:
		k.refused.Store(nil)
	case !errors.Is(err, context.Canceled): // that would be our own doing
		k.refused.Store(&err)
	}
}

func openKafka(c Kafka, format, source string) (Sink, error) {
	options := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.DefaultProduceTopic(c.Topic),
		kgo.RequiredAcks(kgo.AllISRAcks()), // and idempotent, which keeps the order over retries
		kgo.ClientID("sluice"),
		kgo.DisableClientMetrics(),
		kgo.AllowIdempotentProduceCancellation(), // and then never used again, see Send
		kgo.ProducerLinger(0),
		kgo.AllowAutoTopicCreation(), // if the brokers do
		kgo.ProducerBatchCompression(kgo.ZstdCompression(), kgo.SnappyCompression(), kgo.NoCompression()),
	}
	if c.secure() {
		tlsConfig, err := c.tls()
		if err != nil {
			return nil, err
		}
		options = append(options, kgo.DialTLSConfig(tlsConfig))
	}
	if s := c.SASL; s != nil {
		// Read at each login, for it may be renewed.
		password := func() (string, error) { return secret(s.PasswordFile, s.PasswordEnv) }
		login := func(context.Context) (scram.Auth, error) {
			p, err := password()
			return scram.Auth{User: s.Username, Pass: p}, err
		}
		switch s.Mechanism {
		case "plain":
			options = append(options, kgo.SASL(plain.Plain(func(context.Context) (plain.Auth, error) {
				p, err := password()
				return plain.Auth{User: s.Username, Pass: p}, err
			})))
		case "scram-sha-256":
			options = append(options, kgo.SASL(scram.Sha256(login)))
		default:
			options = append(options, kgo.SASL(scram.Sha512(login)))
		}
	}
	k := &kafka{config: c, format: format, source: source}
	k.options = append(options, kgo.WithHooks(k))
	return k, nil
}

func (k *kafka) Send(ctx context.Context, messages []Message) (int, error) {
	// The client tries again by itself, and says nothing meanwhile. (Its own timeout for records counts from their
	// timestamps, which would leave no time for what an outage has made old.)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if k.client == nil {
		client, err := kgo.NewClient(k.options...)
		if err != nil {
			return 0, err
		}
		k.client = client
	}
	n, err := k.produce(ctx, messages)
	if err != nil {
		// What this client may still do with what it has would come out of order. Another one begins anew.
		k.Close()
		if why := k.refused.Load(); why != nil {
			err = fmt.Errorf("%w (%w)", err, *why)
		}
	}
	return n, err
}

func (k *kafka) produce(ctx context.Context, messages []Message) (int, error) {
	contentType := "application/json"
	if k.format == CloudEvents {
		contentType = "application/cloudevents+json"
	}
	records := make([]*kgo.Record, len(messages))
	for i := range messages {
		m := &messages[i]
		records[i] = &kgo.Record{
			Key: []byte(k.source), Value: m.Body, Timestamp: m.Time,
			Headers: []kgo.RecordHeader{
				{Key: "id", Value: []byte(m.ID)},
				{Key: "seq", Value: strconv.AppendUint(nil, m.Seq, 10)},
				{Key: "content-type", Value: []byte(contentType)},
			},
		}
	}
	// The results come in the order in which records were done with, which is that of the partition.
	failed := map[*kgo.Record]error{}
	for _, r := range k.client.ProduceSync(ctx, records...) {
		if r.Err != nil {
			failed[r.Record] = r.Err
		}
	}
	for i, r := range records {
		err := failed[r]
		switch {
		case errors.Is(err, kerr.MessageTooLarge):
			err = ErrTooLarge
		case errors.Is(err, kerr.InvalidRecord) || errors.Is(err, kerr.InvalidTimestamp): // the topic's rules
			err = fmt.Errorf("%w: %w", ErrRefused, err)
		}
		if err != nil {
			return i, err
		}
	}
	return len(messages), nil
}

func (k *kafka) Close() error {
	if k.client != nil {
		k.client.Close()
		k.client = nil
	}
	return nil
}

func splitList(s string) []string {
	var list []string
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

// Source is the default name of a log: the machine's.
func Source() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "sluice"
	}
	return name
}
