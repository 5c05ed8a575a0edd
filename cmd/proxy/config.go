package main

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/gobwas/glob"
	"github.com/goccy/go-yaml"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/signer"
)

// Config is the configuration file. Sections that a package owns are that package's Config.
type Config struct {
	Listen          Listen                    `yaml:"listen"`
	Admin           Admin                     `yaml:"admin"`
	Issuers         []identity.IssuerConfig   `yaml:"issuers"`
	Sessions        identity.SessionsConfig   `yaml:"sessions"`
	Revocation      identity.RevocationConfig `yaml:"revocation"`
	Policy          policy.Config             `yaml:"policy"`
	Backends        []Backend                 `yaml:"backends"`
	Audit           audit.Config              `yaml:"audit"`
	Limits          Limits                    `yaml:"limits"`
	ShutdownTimeout time.Duration             `yaml:"shutdown_timeout" zero:"meant"` // [30s] for requests in flight, once told to stop
	Telemetry       Telemetry                 `yaml:"telemetry"`
	Log             Log                       `yaml:"log"`
}

// Listen is the S3 listener.
type Listen struct {
	Address        string   `yaml:"address"`         // [:8443]
	Domains        []string `yaml:"domains"`         // [none: path style on any host]
	TrustedProxies []string `yaml:"trusted_proxies"` // CIDRs whose X-Forwarded-For tells the source
	ProxyProtocol  bool     `yaml:"proxy_protocol"`  // read PROXY protocol headers of trusted proxies
	Plaintext      bool     `yaml:"plaintext"`       // allow plain HTTP off loopback
	TLS            TLS      `yaml:"tls"`
}

// TLS is one of ACME and Files; none is plain HTTP.
type TLS struct {
	ACME      *ACME  `yaml:"acme"`
	Files     *Files `yaml:"files"`
	Plaintext bool   `yaml:"plaintext"` // the same as listen.plaintext
}

// Files are a certificate and its key, read again when they change.
type Files struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// Admin is the listener for health, metrics and revocations.
type Admin struct {
	Address   string `yaml:"address"`    // [127.0.0.1:9090]
	TokenFile string `yaml:"token_file"` // bearer token for what changes things; needed off loopback
}

// Backend is an S3 service behind Sluice.
type Backend struct {
	Name         string        `yaml:"name"`
	Buckets      []string      `yaml:"buckets"`  // globs
	Endpoint     string        `yaml:"endpoint"` // [AWS in the region]
	Region       string        `yaml:"region"`
	PathStyle    bool          `yaml:"path_style"`
	Keys         string        `yaml:"keys"` // [literal for AWS, strict for others]
	CAFile       string        `yaml:"ca_file"`
	TraceContext bool          `yaml:"trace_context"` // send W3C trace context
	Credentials  signer.Config `yaml:"credentials"`
}

// Limits of the S3 listener.
type Limits struct {
	MaxInFlight       int           `yaml:"max_in_flight"`                    // [4096]
	HeaderTimeout     time.Duration `yaml:"header_timeout"`                   // [10s]
	IdleTimeout       time.Duration `yaml:"idle_timeout"`                     // [60s] no byte either way
	RequestsPerSecond float64       `yaml:"requests_per_second" zero:"meant"` // of these three, 0 = none
	BytesPerSecond    audit.Size    `yaml:"bytes_per_second" zero:"meant"`
	InFlight          int           `yaml:"in_flight" zero:"meant"`
}

// Telemetry is where traces, metrics and logs go besides /metrics and standard error.
type Telemetry struct {
	OTLP        OTLP   `yaml:"otlp"`
	ServiceName string `yaml:"service_name"` // [sluice]
	Spans       Spans  `yaml:"spans"`
}

// Spans is what traces tell beyond operation, bucket and outcome. They are seen by other people than the audit log
// is, and nothing in them is redacted.
type Spans struct {
	Keys     bool `yaml:"keys"`     // [false] aws.s3.key
	Subjects bool `yaml:"subjects"` // [false] enduser.id and session.id
}

// OTLP is an OpenTelemetry receiver.
type OTLP struct {
	Endpoint string `yaml:"endpoint"` // URL; [the OTEL_* variables]
}

// Log is the operator's log, on standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, [info], warn, error
	Format string `yaml:"format"` // [json], text
}

// Problem is one mistake in the file.
type Problem struct{ Path, Text string }

func (p Problem) String() string {
	if p.Path == "" {
		return p.Text
	}
	return p.Path + ": " + p.Text
}

// ConfigError is every problem of a configuration file.
type ConfigError struct {
	File     string
	Problems []Problem
}

func (e *ConfigError) Error() string { return errors.Join(e.Unwrap()...).Error() }

// Unwrap is the problems, each with the file.
func (e *ConfigError) Unwrap() []error {
	errs := make([]error, len(e.Problems))
	for i, p := range e.Problems {
		if errs[i] = errors.New(p.String()); e.File != "" {
			errs[i] = fmt.Errorf("%s: %s", e.File, p)
		}
	}
	return errs
}

// loadConfig reads file, fills in the defaults, and reports every problem at once as a *ConfigError.
func loadConfig(file string) (*Config, error) {
	c, problems, err := readConfig(file)
	if len(problems) > 0 {
		return nil, &ConfigError{file, problems}
	}
	return c, err
}

// readConfig reads file as far as it can be understood, and what there is against it.
func readConfig(file string) (*Config, []Problem, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	c, problems := parseConfig(text, os.LookupEnv)
	return c, problems, nil
}

// parseConfig reads a configuration; env looks environment variables up. With problems it is what there is without the
// values that were not understood, or nil.
func parseConfig(text []byte, env func(string) (string, bool)) (*Config, []Problem) {
	var problems []Problem
	report := func(path, text string) { problems = append(problems, Problem{path, text}) }

	var tree map[string]any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		// [line:column] and what is wrong. The lines that follow show the file, which may be another than was meant.
		what, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
		if strings.Contains(string(text), "${") && strings.Contains(what, "must be specified") {
			what += `; inside {…} quote what has a variable in it: {dir: "${NAME}"}`
		}
		report("", "not YAML: "+what)
		return nil, problems
	}
	expanded := expand(tree, "", env, report)

	var lost []string // the values that were not understood
	for _, p := range problems {
		lost = append(lost, p.Path)
		expanded = without(expanded, "", p.Path, nil)
	}
	c, err := decode(expanded)
	if err != nil {
		for _, e := range flatten(err) {
			var at *mapstructure.DecodeError
			if errors.As(e, &at) {
				path, problem := userKey.ReplaceAllString(at.Name(), ".$1"), inWords(strings.ReplaceAll(at.Unwrap().Error(), "\n", " "))
				lost = append(lost, path)
				report(path, problem)
				var instead any
				if strings.HasPrefix(problem, keysAndValues) {
					instead = map[string]any{} // there was to be a section
				}
				expanded = without(expanded, "", path, instead)
			} else {
				report("", e.Error())
			}
		}
		// The decoder leaves out the section around what it does not understand: without it, the rest is there to check.
		if c, err = decode(expanded); err != nil {
			return nil, problems
		}
	}
	checkKeys(expanded, reflect.TypeFor[Config](), "", report)
	c.setDefaults()
	c.check(func(path, text string) {
		// A value that was not understood is missing where it was to be, with what it has, and what holds it may be too.
		if !slices.ContainsFunc(lost, func(l string) bool { return within(l, path) || within(path, l) }) {
			report(path, text)
		}
	})
	slices.SortStableFunc(problems, func(a, b Problem) int { return strings.Compare(a.Path, b.Path) })
	return c, slices.Compact(problems)
}

func decode(tree any) (*Config, error) {
	c := &Config{ShutdownTimeout: 30 * time.Second} // here, as 0s is a time too: cut at once
	decoder, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		Result: c, TagName: "yaml", Squash: true, // embedded structs' keys stand beside their holder's
		MatchName: func(key, field string) bool { return key == field },
		DecodeHook: mapstructure.ComposeDecodeHookFunc(
			durations, wholeNumbers, mapstructure.TextUnmarshallerHookFunc(),
		),
	})
	if err != nil {
		return nil, err
	}
	return c, decoder.Decode(tree)
}

// within tells whether path is at or below one above it.
func within(path, above string) bool {
	rest, ok := strings.CutPrefix(path, above)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// without is value, which is at the path at, with instead where the one at path is.
func without(value any, at, path string, instead any) any {
	if at == path {
		return instead
	}
	replaceBelow(value, at, func(below any, at string) any { return without(below, at, path, instead) })
	return value
}

// replaceBelow puts into value, which is at the path at, what by makes of each that it holds and the path of that.
func replaceBelow(value any, at string, by func(below any, at string) any) {
	switch v := value.(type) {
	case map[string]any:
		for key, below := range v {
			v[key] = by(below, join(at, key))
		}
	case []any:
		for i, below := range v {
			v[i] = by(below, fmt.Sprintf("%s[%d]", at, i))
		}
	}
}

// userKey is how the decoder writes a key of a map of the user's own: session_tags[project].
var userKey = regexp.MustCompile(`\[([^\]]*[^\]0-9][^\]]*)\]`)

var wrongType = regexp.MustCompile(`^(?:expected type '(.+)', got unconvertible type|source data must be (an array or slice), got|expected (a map or struct), got) ['"]?([^'"]+)['"]?$`)

const keysAndValues = "keys and values ({key: value})"

// inWords says what the decoder says of Go's types by what is written in a file.
func inWords(problem string) string {
	m := wrongType.FindStringSubmatch(problem)
	if m == nil {
		return problem
	}
	name := func(kind string) string {
		switch {
		case strings.HasPrefix(kind, "int") || strings.HasPrefix(kind, "uint") || strings.HasPrefix(kind, "float"):
			return "a number"
		case kind == "bool":
			return "true or false"
		case strings.HasPrefix(kind, "[]") || kind == "slice" || kind == "an array or slice":
			return "a list ([a, b])"
		case strings.HasPrefix(kind, "map") || kind == "a map or struct":
			return keysAndValues
		}
		return "text"
	}
	return name(m[1]+m[2]+m[3]) + " is needed, not " + name(m[4])
}

// checkKeys reports every key that no field takes (the decoder's own list leaves out those beside a value that does not
// decode), and every number written as zero that would be taken for one not written: `keep: 0` must not keep 30.
func checkKeys(value any, to reflect.Type, path string, report func(path, text string)) {
	for to.Kind() == reflect.Pointer {
		to = to.Elem()
	}
	switch v := value.(type) {
	case []any:
		if to.Kind() == reflect.Slice {
			for i, below := range v {
				checkKeys(below, to.Elem(), fmt.Sprintf("%s[%d]", path, i), report)
			}
		}
	case map[string]any:
		if to.Kind() != reflect.Struct {
			return // its keys are the user's
		}
		fields := map[string]reflect.StructField{}
		keysOf(to, fields)
		for key, below := range v {
			field, ok := fields[key]
			switch {
			case !ok:
				report(join(path, key), "unknown key; "+meant(key, fields))
			case isZero(below, field.Type) && field.Tag.Get("zero") != "meant":
				report(join(path, key), fmt.Sprintf("%v is not possible here: write more, or leave the key out for its default", below))
			default:
				checkKeys(below, field.Type, join(path, key), report)
			}
		}
	}
}

// meant says which key may have been, or where they all are.
func meant(key string, fields map[string]reflect.StructField) string {
	closest, least := "", 4 // letters more, less or other
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if d := edits(key, name); d < least && 3*d <= len(name) {
			closest, least = name, d
		}
	}
	if closest != "" {
		return fmt.Sprintf("did you mean %s?", closest)
	}
	return "docs/configuration.md lists the keys there are"
}

// edits is the Levenshtein distance.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			other := diagonal
			if a[i] != b[j] {
				other++
			}
			diagonal = row[j+1]
			row[j+1] = min(other, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// isZero tells a number, size or duration that was written as zero. Behind a pointer it is told from none anyway.
func isZero(value any, to reflect.Type) bool {
	switch {
	case to == reflect.TypeFor[time.Duration]():
		text, ok := value.(string)
		d, err := time.ParseDuration(text)
		return ok && err == nil && d == 0
	case to == reflect.TypeFor[audit.Size]():
		var size audit.Size
		return size.UnmarshalText([]byte(fmt.Sprint(value))) == nil && size == 0
	case to.Kind() == reflect.Int || to.Kind() == reflect.Float64:
		v := reflect.ValueOf(value)
		return (v.CanInt() || v.CanUint() || v.CanFloat()) && v.IsZero()
	}
	return false
}

// keysOf collects the keys that a struct takes, those of the structs embedded in it too.
func keysOf(to reflect.Type, fields map[string]reflect.StructField) {
	for field := range to.Fields() {
		if field.Anonymous {
			keysOf(field.Type, fields)
		} else if name, _, _ := strings.Cut(field.Tag.Get("yaml"), ","); name != "" && name != "-" {
			fields[name] = field
		}
	}
}

// flatten lists the errors that were joined into err.
func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	if _, at := err.(*mapstructure.DecodeError); !at {
		if inner := errors.Unwrap(err); inner != nil {
			return flatten(inner)
		}
	}
	return []error{err}
}

// durations takes "30s", and not a bare number, which would be nanoseconds.
func durations(from, to reflect.Type, value any) (any, error) {
	if to != reflect.TypeFor[time.Duration]() {
		return value, nil
	}
	text, ok := value.(string)
	if !ok {
		return nil, fmt.Errorf("a duration with its unit is needed (30s, 5m, 1h), not %v", value)
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return nil, fmt.Errorf("%q is not a duration: write a number and its unit, such as 30s, 5m or 1h", text)
	}
	return d, nil
}

// wholeNumbers takes no 1.5 for 1.
func wholeNumbers(from, to reflect.Type, value any) (any, error) {
	if f, ok := value.(float64); ok && to.Kind() >= reflect.Int && to.Kind() <= reflect.Uint64 && f != math.Trunc(f) {
		return nil, fmt.Errorf("a whole number is needed, not %v", f)
	}
	return value, nil
}

var variable = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)

// expand replaces ${NAME} in every value. A value that is nothing but ${NAME} takes the type its text has in YAML.
func expand(value any, path string, env func(string) (string, bool), report func(path, text string)) any {
	v, isText := value.(string)
	if !isText {
		replaceBelow(value, path, func(below any, path string) any { return expand(below, path, env, report) })
		return value
	}
	if !strings.Contains(v, "${") {
		return v
	}
	text := variable.ReplaceAllStringFunc(v, func(match string) string {
		name := match[2 : len(match)-1]
		value, ok := env(name)
		if !ok {
			report(path, fmt.Sprintf("environment variable %s is not set", name))
		}
		return value
	})
	if variable.FindString(v) == v {
		var typed any
		if yaml.Unmarshal([]byte(text), &typed) == nil {
			switch typed.(type) {
			case bool, int, int64, uint64, float64:
				return typed
			}
		}
	}
	return text
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func (c *Config) setDefaults() {
	set(&c.Listen.Address, ":8443")
	set(&c.Admin.Address, "127.0.0.1:9090")
	set(&c.Limits.MaxInFlight, 4096)
	set(&c.Limits.HeaderTimeout, 10*time.Second)
	set(&c.Limits.IdleTimeout, 60*time.Second)
	set(&c.Telemetry.ServiceName, "sluice")
	set(&c.Log.Level, "info")
	set(&c.Log.Format, "json")
	if c.Listen.TLS.ACME != nil {
		c.Listen.TLS.ACME.setDefaults()
	}
	c.Listen.Plaintext = c.Listen.Plaintext || c.Listen.TLS.Plaintext
	for i := range c.Backends {
		b := &c.Backends[i]
		if b.Keys == "" {
			b.Keys = "strict"
			if b.Endpoint == "" {
				b.Keys = "literal"
			}
		}
	}
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// check reports every problem that can be seen without asking anybody.
func (c *Config) check(report func(path, text string)) {
	under := func(prefix string) func(path, text string) {
		return func(path, text string) {
			if path == "" {
				report(prefix, text)
			} else {
				report(prefix+"."+path, text)
			}
		}
	}
	c.Listen.check(under("listen"))
	c.Admin.check(under("admin"))
	identity.CheckIssuers(c.Issuers, func(path, text string) { report("issuers"+path, text) })
	c.Sessions.Check(under("sessions"))
	c.Revocation.Check(under("revocation"))
	c.Policy.Check(under("policy"))
	if len(c.Backends) == 0 {
		report("backends", "at least one backend is needed")
	}
	names := map[string]bool{}
	for i := range c.Backends {
		at := fmt.Sprintf("backends[%d]", i)
		c.Backends[i].check(under(at))
		if names[c.Backends[i].Name] {
			report(at+".name", "named twice")
		}
		names[c.Backends[i].Name] = true
	}
	if c.Admin.Address == c.Listen.Address && !strings.HasSuffix(c.Admin.Address, ":0") {
		report("admin.address", "is the S3 listener's: give it another port")
	}
	c.Audit.Check(under("audit"))
	c.Limits.check(under("limits"))
	if c.ShutdownTimeout < 0 {
		report("shutdown_timeout", "must not be negative")
	}
	if e := c.Telemetry.OTLP.Endpoint; e != "" {
		if u, err := url.Parse(e); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			report("telemetry.otlp.endpoint", "a URL is needed, such as http://localhost:4318")
		}
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		report("log.level", fmt.Sprintf("%q is none of debug, info, warn, error", c.Log.Level))
	}
	if !slices.Contains([]string{"json", "text"}, c.Log.Format) {
		report("log.format", fmt.Sprintf("%q is neither json nor text", c.Log.Format))
	}
}

// looseFiles are files that the configuration names and that every user of the machine may write, or read where they hold
// secrets. It is no mistake: in a container modes are often not what counts, and some mounts show the same for all files.
func (c *Config) looseFiles() (loose []Problem) {
	c.eachFile(func(path, file string) {
		switch mode, ok := modeOf(file); {
		case ok && mode&0o002 != 0:
			loose = append(loose, Problem{path, fmt.Sprintf("%s may be written by every user of this machine (mode %04o), who would choose what is believed: chmod o-w", file, mode)})
		case ok && mode&0o004 != 0 && !isPublic(path):
			loose = append(loose, Problem{path, fmt.Sprintf("%s may be read by every user of this machine (mode %04o): chmod 0600, or 0640 with a group of the proxy's own", file, mode)})
		}
	})
	return loose
}

// eachFile calls see with every file that holds a secret or what is believed: those of the keys that end in _file, and the
// listener's certificate.
func (c *Config) eachFile(see func(path, file string)) {
	if f := c.Listen.TLS.Files; f != nil {
		see("listen.tls.files.cert", f.Cert)
		see("listen.tls.files.key", f.Key)
	}
	filesOf(reflect.ValueOf(c).Elem(), "", see)
}

func filesOf(value reflect.Value, path string, see func(path, file string)) {
	switch value.Kind() {
	case reflect.Pointer:
		if !value.IsNil() {
			filesOf(value.Elem(), path, see)
		}
	case reflect.Slice:
		for i := range value.Len() {
			filesOf(value.Index(i), fmt.Sprintf("%s[%d]", path, i), see)
		}
	case reflect.Struct:
		for field, below := range value.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
			switch {
			case field.Anonymous:
				filesOf(below, path, see)
			case name == "" || name == "-":
			case strings.HasSuffix(name, "_file") && below.Kind() == reflect.String:
				see(join(path, name), below.String())
			default:
				filesOf(below, join(path, name), see)
			}
		}
	}
}

// isPublic tells the files that anybody may read.
func isPublic(path string) bool {
	return slices.ContainsFunc([]string{".cert", ".cert_file", ".ca_file", ".jwks_file", ".known_hosts_file", ".access_key_id_file"}, func(name string) bool {
		return strings.HasSuffix(path, name)
	})
}

// modeOf is who may do what with a file. Windows tells it by other means, and what is no file (a pipe) is not kept.
func modeOf(file string) (fs.FileMode, bool) {
	info, err := os.Stat(file)
	if err != nil || !info.Mode().IsRegular() || runtime.GOOS == "windows" {
		return 0, false
	}
	return info.Mode().Perm(), true
}

func (l *Listen) check(report func(path, text string)) {
	host, ok := checkAddress(l.Address, "address", report)
	for i, d := range l.Domains {
		if !isDomain(d) {
			report(fmt.Sprintf("domains[%d]", i), fmt.Sprintf("%q is not a host name: no scheme, port or wildcard", d))
		}
	}
	for i, cidr := range l.TrustedProxies {
		if _, err := parsePrefix(cidr); err != nil {
			report(fmt.Sprintf("trusted_proxies[%d]", i), fmt.Sprintf("%q is not a CIDR such as 10.0.0.0/8", cidr))
		}
	}
	if l.ProxyProtocol && len(l.TrustedProxies) == 0 {
		report("proxy_protocol", "name the load balancers in trusted_proxies: PROXY headers from anyone else are not believed")
	}
	switch {
	case l.TLS.ACME != nil && l.TLS.Files != nil:
		report("tls", "acme and files are both given; use one")
	case l.TLS.ACME != nil:
		l.TLS.ACME.check(l.Domains, report)
	case l.TLS.Files != nil:
		cert, key := checkFile(l.TLS.Files.Cert, "tls.files.cert", report), checkFile(l.TLS.Files.Key, "tls.files.key", report)
		if cert && key {
			if _, err := tls.LoadX509KeyPair(l.TLS.Files.Cert, l.TLS.Files.Key); err != nil {
				report("tls.files", fmt.Sprintf("cert and key must be PEM, and the key the certificate's: %v", err))
			}
		}
	case ok && !l.Plaintext && !isLoopback(host):
		report("tls", "plain HTTP off loopback would show tokens to the network: set tls.files or tls.acme, or plaintext: true behind something that terminates TLS")
	}
}

func (a *Admin) check(report func(path, text string)) {
	host, ok := checkAddress(a.Address, "address", report)
	if a.TokenFile != "" {
		if text, err := os.ReadFile(a.TokenFile); err != nil {
			report("token_file", err.Error())
		} else if len(bytes.TrimSpace(text)) == 0 {
			report("token_file", a.TokenFile+" is empty: nobody could be let in (openssl rand -hex 32 makes a token)")
		}
	} else if ok && !isLoopback(host) {
		report("token_file", "needed where the admin listener is off loopback: anyone could revoke sessions")
	}
}

func (b *Backend) check(report func(path, text string)) {
	if b.Name == "" {
		report("name", "needed: events and policy call the backend by it")
	}
	if len(b.Buckets) == 0 {
		report("buckets", `at least one glob is needed ("*" takes every bucket)`)
	}
	for i, pattern := range b.Buckets {
		if _, err := glob.Compile(pattern); err != nil || pattern == "" {
			report(fmt.Sprintf("buckets[%d]", i), fmt.Sprintf("%q is not a glob", pattern))
		}
	}
	if b.Endpoint != "" {
		u, err := url.Parse(b.Endpoint)
		switch {
		case err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https"):
			report("endpoint", fmt.Sprintf("%q is not a URL such as https://minio.example.com:9000", b.Endpoint))
		case !isPort(cmp.Or(u.Port(), "443")):
			report("endpoint", fmt.Sprintf("there is no port %s", u.Port()))
		case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
			report("endpoint", "scheme, host and port only")
		}
	}
	if b.Region == "" {
		report("region", "needed to sign (us-east-1 where the service has none)")
	} else if err := signer.CheckRegion(b.Region); err != nil {
		report("region", err.Error())
	}
	if b.Keys != "literal" && b.Keys != "strict" {
		report("keys", fmt.Sprintf("%q is neither literal nor strict", b.Keys))
	}
	if b.CAFile != "" {
		if _, err := certificatesIn(b.CAFile); err != nil {
			report("ca_file", err.Error())
		}
	}
	b.Credentials.Check(func(path, text string) {
		if path == "" {
			report("credentials", text)
		} else {
			report("credentials."+path, text)
		}
	})
}

func (l *Limits) check(report func(path, text string)) {
	if l.MaxInFlight < 1 {
		report("max_in_flight", "must be at least 1")
	}
	if l.HeaderTimeout < 0 {
		report("header_timeout", "must not be negative")
	}
	if l.IdleTimeout < 0 {
		report("idle_timeout", "must not be negative")
	}
	if l.RequestsPerSecond < 0 {
		report("requests_per_second", "must not be negative; 0 = no limit")
	}
	if l.BytesPerSecond < 0 {
		report("bytes_per_second", "must not be negative; 0 = no limit")
	}
	if l.InFlight < 0 {
		report("in_flight", "must not be negative; 0 = no limit")
	}
}

func checkAddress(address, path string, report func(path, text string)) (host string, ok bool) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || !isPort(port) {
		report(path, fmt.Sprintf("%q is not host:port, such as 127.0.0.1:8443 or :8443", address))
		return "", false
	}
	return host, true
}

// isPort takes 0 too, which is any that is free, and names (https).
func isPort(s string) bool {
	_, err := net.LookupPort("tcp", s)
	return err == nil && s != ""
}

func checkFile(name, path string, report func(path, text string)) (ok bool) {
	if name == "" {
		report(path, "needed")
		return false
	}
	f, err := os.Open(name)
	if err != nil {
		report(path, err.Error())
		return false
	}
	f.Close()
	return true
}

// certificatesIn reads a ca_file.
func certificatesIn(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no PEM certificate", file)
	}
	return pool, nil
}

var domain = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*$`)

func isDomain(name string) bool { return len(name) <= 253 && domain.MatchString(name) }

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// parsePrefix reads a CIDR, or one address.
func parsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func parsePrefixes(list []string) ([]netip.Prefix, error) {
	prefixes := make([]netip.Prefix, len(list))
	for i, s := range list {
		var err error
		if prefixes[i], err = parsePrefix(s); err != nil {
			return nil, err
		}
	}
	return prefixes, nil
}
