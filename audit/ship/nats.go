package ship

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// NATS publishes each event to a JetStream stream, with its id as Nats-Msg-Id, by which the stream drops what it
// has had within its duplicate window. Where the stream allows atomic batches events go in batches; where it does
// not, one after the other, since nothing else keeps their order.
type NATS struct {
	// URL is nats://host:4222 or tls://host:4222; several are separated by commas.
	URL string `yaml:"url"`
	// Stream is made where it is missing, with Subject, on disk, atomic batches and two minutes of duplicates.
	Stream string `yaml:"stream"`
	// Subject is published to [sluice.audit].
	Subject string `yaml:"subject"`
	// CredentialsFile is a .creds file; TokenFile or TokenEnv a token.
	CredentialsFile string `yaml:"credentials_file"`
	TokenFile       string `yaml:"token_file"`
	TokenEnv        string `yaml:"token_env"`
	Connection      `yaml:",inline"`
}

func (n *NATS) check(report func(path, problem string)) {
	if n.URL == "" {
		report("url", "is missing: write it, such as tls://nats.example.com:4222")
	}
	for _, u := range splitList(n.URL) {
		if problem := n.checkURL(u, []string{"tls", "wss"}, []string{"nats", "ws"}); problem != "" {
			report("url", problem)
		}
	}
	if n.Stream == "" {
		report("stream", "is missing: name the JetStream stream")
	}
	checkName(n.Stream, streamName, "stream", "no spaces, dots, slashes or wildcards", report)
	checkName(n.Subject, subjectName, "subject", "words with dots between, without spaces or wildcards", report)
	if n.CredentialsFile != "" && (n.TokenFile != "" || n.TokenEnv != "") || n.TokenFile != "" && n.TokenEnv != "" {
		report("credentials_file", "credentials_file, token_file and token_env exclude each other")
	}
}

type natsSink struct {
	config         NATS
	format, source string
	conn           *nats.Conn
	js             jetstream.JetStream
	atomic         bool
}

func openNATS(c NATS, format, source string) (Sink, error) {
	if c.Subject == "" {
		c.Subject = "sluice.audit"
	}
	if _, err := c.tls(); err != nil {
		return nil, err
	}
	return &natsSink{config: c, format: format, source: source}, nil
}

func (s *natsSink) connect(ctx context.Context) error {
	if s.conn != nil {
		return nil
	}
	tlsConfig, err := s.config.tls()
	if err != nil {
		return err
	}
	options := []nats.Option{
		nats.Name("sluice audit " + s.source), nats.Timeout(10 * time.Second),
		nats.MaxReconnects(-1), nats.ReconnectBufSize(-1), // what cannot be sent now is not kept in memory: the log has it
	}
	if s.config.CAFile != "" || s.config.CertFile != "" {
		options = append(options, nats.Secure(tlsConfig))
	}
	if s.config.CredentialsFile != "" {
		options = append(options, nats.UserCredentials(s.config.CredentialsFile))
	}
	token, err := secret(s.config.TokenFile, s.config.TokenEnv)
	if err != nil {
		return fmt.Errorf("read the token: %w", err)
	}
	if token != "" {
		options = append(options, nats.Token(token))
	}
	conn, err := nats.Connect(s.config.URL, options...)
	if err != nil {
		return err
	}
	s.js, err = jetstream.New(conn)
	if err == nil {
		err = s.findStream(ctx)
	}
	if err != nil {
		conn.Close()
		return err
	}
	s.conn = conn
	return nil
}

func (s *natsSink) findStream(ctx context.Context) error {
	stream, err := s.js.Stream(ctx, s.config.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = s.js.CreateStream(ctx, jetstream.StreamConfig{
			Name: s.config.Stream, Subjects: []string{s.config.Subject}, Storage: jetstream.FileStorage,
			Duplicates: 2 * time.Minute, AllowAtomicPublish: true, Description: "Sluice audit events",
		})
	}
	if err != nil {
		return fmt.Errorf("stream %s: %w", s.config.Stream, err)
	}
	s.atomic = stream.CachedInfo().Config.AllowAtomicPublish
	return nil
}

func (s *natsSink) message(m *Message) *nats.Msg {
	msg := nats.NewMsg(s.config.Subject)
	msg.Data = m.Body
	msg.Header.Set(jetstream.MsgIDHeader, m.ID)
	msg.Header.Set(jetstream.ExpectedStreamHeader, s.config.Stream)
	msg.Header.Set("Sluice-Source", s.source)
	msg.Header.Set("Sluice-Seq", strconv.FormatUint(m.Seq, 10))
	contentType := "application/json"
	if s.format == CloudEvents {
		contentType = "application/cloudevents+json"
	}
	msg.Header.Set("Content-Type", contentType)
	return msg
}

// maxAtomic is the most messages that a server takes in one batch.
const maxAtomic = 1000

func (s *natsSink) Send(ctx context.Context, messages []Message) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := s.connect(ctx); err != nil {
		return 0, err
	}
	sent := 0
	for sent < len(messages) {
		some := messages[sent:min(len(messages), sent+maxAtomic)]
		if s.atomic && len(some) > 1 {
			err := s.sendBatch(ctx, some)
			if err == nil {
				sent += len(some)
				continue
			}
			var refused *jetstream.APIError
			if !errors.As(err, &refused) {
				return sent, s.reason(err)
			}
			// Refused as a whole: for one that the stream has had, perhaps. Then one by one.
		}
		for i := range some {
			if _, err := s.js.PublishMsg(ctx, s.message(&some[i]), jetstream.WithRetryAttempts(0)); err != nil {
				return sent, s.reason(err)
			}
			sent++
		}
	}
	return sent, nil
}

// sendBatch publishes messages so that the stream has all of them, next to each other, or none.
func (s *natsSink) sendBatch(ctx context.Context, messages []Message) error {
	batch := rand.Text()
	for i := range messages {
		msg := s.message(&messages[i])
		msg.Header.Set("Nats-Batch-Id", batch)
		msg.Header.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		if i < len(messages)-1 {
			if err := s.conn.PublishMsg(msg); err != nil {
				return err
			}
			continue
		}
		msg.Header.Set("Nats-Batch-Commit", "1")
		answer, err := s.conn.RequestMsgWithContext(ctx, msg)
		if err != nil {
			return err
		}
		var ack struct {
			Error  *jetstream.APIError `json:"error"`
			Stream string              `json:"stream"`
		}
		if err := json.Unmarshal(answer.Data, &ack); err != nil {
			return fmt.Errorf("read the stream's answer: %w", err)
		}
		if ack.Error != nil {
			return ack.Error
		}
		if ack.Stream != s.config.Stream {
			return fmt.Errorf("stream %q answered for %q", ack.Stream, s.config.Stream)
		}
	}
	return nil
}

func (s *natsSink) reason(err error) error {
	if errors.Is(err, nats.ErrMaxPayload) {
		return ErrTooLarge
	}
	var refused *jetstream.APIError
	if errors.As(err, &refused) && refused.ErrorCode == 10054 { // message size exceeds maximum allowed
		return ErrTooLarge
	}
	return err
}

func (s *natsSink) Close() error {
	if s.conn != nil {
		s.conn.Close()
	}
	return nil
}
