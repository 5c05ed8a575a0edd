package ship_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sluice-s3/sluice/audit/ship"
	"github.com/sluice-s3/sluice/test/machine"
	"github.com/twmb/franz-go/pkg/kfake"
)

func send(t *testing.T, c ship.Config, bodies ...string) (int, error) {
	t.Helper()
	return sendUntil(t, context.Background(), c, bodies...)
}

// refused is send where it is to fail, and to say one of the words. Kafka's client would go on trying, and gets as long as it takes
// to have tried once.
func refused(t *testing.T, c ship.Config, words ...string) {
	t.Helper()
	for patience := 3 * time.Second; ; patience *= 2 {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		n, err := sendUntil(t, ctx, c, "{}")
		cancel()
		switch {
		case n == 0 && err != nil && slices.ContainsFunc(words, func(word string) bool { return strings.Contains(err.Error(), word) }):
			return
		case errors.Is(err, context.DeadlineExceeded) && patience < machine.Patience: // nothing else, yet
		default:
			t.Errorf("%d sent, %v", n, err)
			return
		}
	}
}

func sendUntil(t *testing.T, ctx context.Context, c ship.Config, bodies ...string) (int, error) {
	t.Helper()
	s, err := ship.Open(c, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var messages []ship.Message
	for i, b := range bodies {
		messages = append(messages, ship.Message{ID: fmt.Sprintf("id-%d", i), Seq: uint64(i), Time: time.Now(), Body: []byte(b)})
	}
	return s.Send(ctx, messages)
}

func file(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestWebhookShowsWhoItIs(t *testing.T) {
	var got http.Header
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r.Header.Clone() }))
	defer s.Close()
	ca := file(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	t.Setenv("SHIP_TEST_TOKEN", "from-env")

	w := &ship.Webhook{URL: s.URL}
	if n, err := send(t, ship.Config{Webhook: w}, "{}"); err == nil || n != 0 {
		t.Error("a certificate that nobody vouches for is accepted")
	}
	w.CAFile = ca
	w.TokenFile = file(t, "from-file\n")
	w.HeadersFile = file(t, "# comment\nX-Scope-OrgID: acme\n\nX-Two:  b c \n")
	if n, err := send(t, ship.Config{Webhook: w}, "{}", "{}"); err != nil || n != 2 {
		t.Fatal(n, err)
	}
	for name, want := range map[string]string{"Authorization": "Bearer from-file", "X-Scope-Orgid": "acme", "X-Two": "b c", "Idempotency-Key": "id-0-id-1", "Content-Type": "application/x-ndjson", "Sluice-Source": "test"} {
		if got.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, got.Get(name), want)
		}
	}
	w.TokenFile, w.TokenEnv = "", "SHIP_TEST_TOKEN"
	if _, err := send(t, ship.Config{Webhook: w}, "{}"); err != nil || got.Get("Authorization") != "Bearer from-env" {
		t.Errorf("%v %q", err, got.Get("Authorization"))
	}
	w.TokenEnv = "SHIP_TEST_NOTHING"
	if _, err := send(t, ship.Config{Webhook: w}, "{}"); err == nil {
		t.Error("sent without the token that is configured")
	}
}

func TestWebhookGoesNowhereElse(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer other.Close()
	s := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer s.Close()
	if n, err := send(t, ship.Config{Webhook: &ship.Webhook{URL: s.URL}}, "{}"); err == nil || n != 0 {
		t.Error("a redirect counts as delivered")
	}
}

func TestErrorsTellNoSecrets(t *testing.T) {
	_, err := send(t, ship.Config{Webhook: &ship.Webhook{URL: "http://127.0.0.1:1/hook?key=canary"}}, "{}")
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Error(err)
	}
}

func TestRetryAfterIsHeard(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer s.Close()
	_, err := send(t, ship.Config{Webhook: &ship.Webhook{URL: s.URL}}, "{}")
	var later ship.RetryAfter
	if !errors.As(err, &later) || later.After != 7*time.Second {
		t.Error(err)
	}
}

// TestNATSLogsIn with a token, and publishes where it is told to.
func TestNATSLogsIn(t *testing.T) {
	s := startNATS(t, &server.Options{Authorization: "secret"})
	n := &ship.NATS{URL: s.ClientURL(), Stream: "A", Subject: "acme.audit"}
	if sent, err := send(t, ship.Config{NATS: n}, "{}"); err == nil || sent != 0 {
		t.Error("the server asks for no token, and shows nothing")
	}
	t.Setenv("SHIP_TEST_NATS_TOKEN", "secret")
	for _, by := range []ship.NATS{{TokenFile: file(t, "secret\n")}, {TokenEnv: "SHIP_TEST_NATS_TOKEN"}} {
		n.TokenFile, n.TokenEnv = by.TokenFile, by.TokenEnv
		if sent, err := send(t, ship.Config{NATS: n}, "{}"); err != nil || sent != 1 {
			t.Errorf("%+v: %d, %v", by, sent, err)
		}
	}
	c, err := nats.Connect(s.ClientURL(), nats.Token("secret"), nats.Timeout(machine.Patience))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	js, err := jetstream.New(c)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), "A")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.GetLastMsgForSubject(t.Context(), "acme.audit"); err != nil {
		t.Errorf("nothing was published to the subject: %v", err)
	}
}

func TestTooLarge(t *testing.T) {
	big := `"` + strings.Repeat("x", 2<<20) + `"`
	ns := startNATS(t, &server.Options{})
	kc, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	defer kc.Close()
	for name, c := range map[string]ship.Config{
		"nats":  {NATS: &ship.NATS{URL: ns.ClientURL(), Stream: "A"}},
		"kafka": {Kafka: &ship.Kafka{Brokers: kc.ListenAddrs(), Topic: "audit"}},
	} {
		t.Run(name, func(t *testing.T) {
			if n, err := send(t, c, "{}", "{}"); n != 2 || err != nil {
				t.Fatal(n, err)
			}
			if n, err := send(t, c, big); n != 0 || !errors.Is(err, ship.ErrTooLarge) {
				t.Error(n, err)
			}
		})
	}
}

func TestKafkaSaysWhyNoBrokerIsReached(t *testing.T) {
	refused(t, ship.Config{Kafka: &ship.Kafka{Brokers: []string{"127.0.0.1:1"}, Topic: "t"}}, "refused")
}

func TestKafkaLogsIn(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "audit"), kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "sluice", "secret"), kfake.Superuser("PLAIN", "plain", "word"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	k := ship.Kafka{Brokers: c.ListenAddrs(), Topic: "audit"}
	t.Setenv("SHIP_TEST_PASSWORD", "secret")
	for _, login := range []ship.SASL{{Username: "sluice", PasswordEnv: "SHIP_TEST_PASSWORD"}, {Username: "sluice", PasswordFile: file(t, "secret\n")}, {Mechanism: "plain", Username: "plain", PasswordFile: file(t, "word")}} {
		k.SASL = &login
		if n, err := send(t, ship.Config{Kafka: &k}, "{}"); n != 1 || err != nil {
			t.Error(login.Mechanism, n, err)
		}
	}
}
