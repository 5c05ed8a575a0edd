package ship

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// CheckSecrets reports the credentials that cannot be read now, each with its path below the entry. It is apart from
// Check because it keeps nobody from starting: they are read when they are used, and until then the file is the queue.
func (c *Config) CheckSecrets(report func(path, problem string)) {
	read := func(path, file, env string) {
		key := path + "_file"
		if env != "" {
			key = path + "_env"
		}
		if v, err := secret(file, env); err != nil {
			report(key, err.Error())
		} else if file != "" && v == "" {
			report(key, file+" is empty")
		}
	}
	readHTTP := func(kind string, h *HTTP) {
		read(kind+".token", h.TokenFile, h.TokenEnv)
		if h.HeadersFile != "" {
			if _, err := os.ReadFile(h.HeadersFile); err != nil {
				report(kind+".headers_file", err.Error())
			}
		}
	}
	switch {
	case c.OTLP != nil:
		readHTTP("otlp", &c.OTLP.HTTP)
	case c.Webhook != nil:
		readHTTP("webhook", &c.Webhook.HTTP)
	case c.NATS != nil:
		read("nats.token", c.NATS.TokenFile, c.NATS.TokenEnv)
		read("nats.credentials", c.NATS.CredentialsFile, "")
	case c.Kafka != nil && c.Kafka.SASL != nil:
		read("kafka.sasl.password", c.Kafka.SASL.PasswordFile, c.Kafka.SASL.PasswordEnv)
	}
}

var (
	streamName  = regexp.MustCompile(`^[^\s.*>/\\]+$`)
	subjectName = regexp.MustCompile(`^[^\s.*>]+(\.[^\s.*>]+)*$`)
	topicName   = regexp.MustCompile(`^[A-Za-z0-9._-]{1,249}$`)
)

// checkName reports a name that the far end would not take. One that is missing is reported elsewhere, or has a default.
func checkName(name string, may *regexp.Regexp, key, rule string, report func(path, problem string)) {
	if name != "" && !may.MatchString(name) {
		report(key, fmt.Sprintf("%q is none that it could have: %s", strings.ToValidUTF8(name, "?"), rule))
	}
}
