package audit_test

import (
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/sluice-s3/sluice/audit"
)

func decode(t *testing.T, text string) (audit.Config, error) {
	t.Helper()
	var c audit.Config
	err := yaml.UnmarshalWithOptions([]byte(text), &c, yaml.Strict())
	return c, err
}

func TestConfigOfTheContract(t *testing.T) {
	c, err := decode(t, `
file: {path: /var/log/sluice/audit.jsonl, max_size: 256MiB, keep: 30, compress: true, fsync: off}
stdout: false
claims: []
redact: {keys: []}
ship: [{otlp: {endpoint: "https://collector:4318"}}, {nats: {url: "tls://n:4222", stream: AUDIT}}, {kafka: {brokers: ["127.0.0.1:9092"], topic: audit}, format: ocsf}, {webhook: {url: "http://localhost:1/x", format: cloudevents, token_env: T}}]
signing_key_file: ""
on_failure: refuse
`)
	if err != nil {
		t.Fatal(err)
	}
	c.Check(func(path, problem string) { t.Errorf("%s: %s", path, problem) })
	if c.File.MaxSize != 256<<20 || !*c.File.Compress || c.File.Fsync != "off" || len(c.Ship) != 4 || c.Ship[2].BodyFormat() != "ocsf" || c.Ship[3].BodyFormat() != "cloudevents" || c.Ship[3].Webhook.TokenEnv != "T" {
		t.Errorf("%+v", c)
	}
}

func TestConfigSizes(t *testing.T) {
	for text, want := range map[string]audit.Size{"256MiB": 256 << 20, "1GB": 1e9, "'4096'": 4096, "8192": 8192, "64 KiB": 64 << 10, "2TiB": 2 << 40} {
		c, err := decode(t, "file: {max_size: "+text+"}")
		if err != nil || c.File.MaxSize != want {
			t.Errorf("%s: %v %v", text, c.File, err)
		}
	}
	for _, text := range []string{"big", "1.5MiB", "-1MiB", "MiB", "10PB", "99999999999TiB"} {
		if c, err := decode(t, "file: {max_size: "+text+"}"); err == nil || !strings.Contains(err.Error(), "256MiB") {
			t.Errorf("%s: %v %v", text, c.File, err)
		}
	}
}

func TestUnknownKeysAreRefused(t *testing.T) {
	for _, text := range []string{"fiel: {}", "file: {pth: x}", "ship: [{webhook: {uri: x}}]", "ship: [{nats: {headers_file: x}}]", "redact: {buckets: []}", "InFlight: 3"} {
		if _, err := decode(t, text); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}

func TestCheckOfShip(t *testing.T) {
	for name, tc := range map[string]struct{ yaml, want string }{
		"none":         {`[{}]`, "ship[0]"},
		"two":          {`[{nats: {}, kafka: {}}]`, "ship[0]"},
		"plain":        {`[{webhook: {url: "http://example.com"}}]`, "ship[0].webhook.url"},
		"plain wanted": {`[{webhook: {url: "http://example.com", plaintext: true}}]`, ""},
		"credentials":  {`[{webhook: {url: "https://u:p@example.com"}}]`, "ship[0].webhook.url"},
		"scheme":       {`[{otlp: {endpoint: "grpc://localhost:4317"}}]`, "ship[0].otlp.endpoint"},
		"no scheme":    {`[{otlp: {endpoint: "collector:4318"}}]`, "ship[0].otlp.endpoint"},
		"nats":         {`[{nats: {url: "nats://n:4222,nats://127.0.0.1:1"}}]`, "ship[0].nats.url ship[0].nats.stream"},
		"kafka":        {`[{kafka: {brokers: [k, "k:9092"], sasl: {mechanism: gssapi}}}]`, "ship[0].kafka.brokers[0] ship[0].kafka.brokers[1] ship[0].kafka.topic ship[0].kafka.sasl.mechanism ship[0].kafka.sasl.username ship[0].kafka.sasl.password_file"},
		"kafka tls":    {`[{kafka: {brokers: ["k:9092"], topic: t, tls: true}}]`, ""},
		"format":       {`[{format: cef, webhook: {url: "https://x"}}]`, "ship[0].format"},
		"same kind":    {`[{webhook: {url: "https://x"}}, {webhook: {url: "https://y"}}]`, "ship[1].name"},
		"named":        {`[{webhook: {url: "https://x"}}, {name: second, webhook: {url: "https://y"}}]`, ""},
		"a path":       {`[{name: ../x, webhook: {url: "https://y"}}]`, "ship[0].name"},
		"half a pair":  {`[{webhook: {url: "https://y", cert_file: x}}]`, "ship[0].webhook.cert_file"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := decode(t, "file: {path: x}\nship: "+tc.yaml)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			c.Check(func(path, problem string) { got = append(got, path) })
			if strings.Join(got, " ") != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	c, _ := decode(t, `{stdout: true, signing_key_file: k, ship: [{webhook: {url: "https://x"}}]}`)
	var got []string
	c.Check(func(path, problem string) { got = append(got, path) })
	if strings.Join(got, " ") != "ship signing_key_file signing_key_file" {
		t.Errorf("without a file: %v", got)
	}
}
