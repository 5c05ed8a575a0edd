package main

import (
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/sluice-s3/sluice/proxy"
)

// tree is a piece of YAML.
type tree map[string]any

// at follows a path such as spec.template.spec.containers.0.name; nil where it leads nowhere.
func (t tree) at(path string) any {
	var v any = map[string]any(t)
	for step := range strings.SplitSeq(path, ".") {
		switch of := v.(type) {
		case map[string]any:
			v = of[step]
		case []any:
			n, err := strconv.Atoi(step)
			if err != nil || n >= len(of) {
				return nil
			}
			v = of[n]
		default:
			return nil
		}
	}
	return v
}

func (t tree) text(path string) string {
	if v := t.at(path); v != nil {
		return fmt.Sprint(v)
	}
	return ""
}

func (t tree) number(path string) int { n, _ := strconv.Atoi(t.text(path)); return n }

func (t tree) list(path string) (list []tree) {
	all, _ := t.at(path).([]any)
	for _, v := range all {
		m, _ := v.(map[string]any)
		list = append(list, m)
	}
	return list
}

func (t tree) labels(path string) map[string]any { m, _ := t.at(path).(map[string]any); return m }

// installation is examples/kubernetes, before kustomize.
type installation struct {
	kustomization tree
	objects       map[string]tree // by kind and name
	adapter       tree
	config        string
	readme        string
}

// readInstallation reads the example, each file through change.
func readInstallation(t *testing.T, change func(file, text string) string) *installation {
	t.Helper()
	dir := filepath.Join("..", "..", "examples", "kubernetes")
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return change(name, string(text))
	}
	parse := func(text string) (of tree) {
		if err := yaml.Unmarshal([]byte(text), &of); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		return of
	}
	i := &installation{objects: map[string]tree{}, config: read("sluice.yaml"), readme: read("README.md"), adapter: parse(read("adapter.yaml"))}
	i.kustomization = parse(read("kustomization.yaml"))
	files, _ := i.kustomization.at("resources").([]any)
	for _, name := range append(files, "workspace.yaml") {
		for document := range strings.SplitSeq(read(name.(string)), "\n---\n") {
			if of := parse(document); len(of) > 0 {
				i.objects[of.text("kind")+" "+of.text("metadata.name")] = of
			}
		}
	}
	return i
}

// problems are what does not fit together: a field that is wrong for Kubernetes is found by .ci/kubernetes.
func (i *installation) problems() (problems []string) {
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Sprintf(format, args...))
		}
	}
	c, bad := parseConfig([]byte(i.config), func(string) (string, bool) { return "", false })
	for _, p := range bad {
		expect(strings.Contains(p.Text, "no such file"), "sluice.yaml: %s", p)
	}
	if c == nil {
		return append(problems, "sluice.yaml cannot be read")
	}
	for _, name := range []string{
		"Namespace sluice", "ServiceAccount sluice", "StatefulSet sluice", "Service sluice", "Service sluice-replicas",
		"PodDisruptionBudget sluice", "PodDisruptionBudget nats", "HorizontalPodAutoscaler sluice", "NetworkPolicy sluice", "NetworkPolicy nats",
		"ServiceMonitor sluice", "ConfigMap nats-config", "StatefulSet nats", "Service nats", "ServiceAccount builder", "Pod builder",
	} {
		expect(i.objects[name] != nil, "there is no %s", name)
	}
	if len(problems) > 0 {
		return problems
	}
	set, nats, builder := i.objects["StatefulSet sluice"], i.objects["StatefulSet nats"], i.objects["Pod builder"]
	pod := tree(set.labels("spec.template"))
	containers := pod.list("spec.containers")
	if len(containers) != 1 {
		return append(problems, "the proxy's pod does not have one container")
	}
	container := containers[0]

	// What is selected is there.
	pods := map[string]map[string]any{"sluice": pod.labels("metadata.labels"), "nats": nats.labels("spec.template.metadata.labels")}
	selects := func(selector map[string]any, who string) bool {
		for k, v := range selector {
			if pods[who][k] != v {
				return false
			}
		}
		return len(selector) > 0
	}
	for name, path := range map[string]string{
		"StatefulSet sluice": "spec.selector.matchLabels", "Service sluice": "spec.selector", "Service sluice-replicas": "spec.selector",
		"PodDisruptionBudget sluice": "spec.selector.matchLabels", "NetworkPolicy sluice": "spec.podSelector.matchLabels",
		"StatefulSet nats": "spec.selector.matchLabels", "Service nats": "spec.selector",
		"PodDisruptionBudget nats": "spec.selector.matchLabels", "NetworkPolicy nats": "spec.podSelector.matchLabels",
	} {
		who := "sluice"
		if strings.HasSuffix(name, "nats") {
			who = "nats"
		}
		expect(selects(i.objects[name].labels(path), who), "%s does not select the pods of %s", name, who)
	}
	ports := map[string]int{}
	for _, p := range container.list("ports") {
		ports[p.text("name")] = p.number("containerPort")
	}
	for name, address := range map[string]string{"s3": c.Listen.Address, "admin": c.Admin.Address} {
		expect(strings.HasSuffix(address, fmt.Sprint(":", ports[name])), "the port %s is %d, and the configuration has %s", name, ports[name], address)
	}
	for service, port := range map[string]string{"Service sluice": "s3", "Service sluice-replicas": "admin"} {
		expect(i.objects[service].text("spec.ports.0.targetPort") == port, "%s does not lead to %s", service, port)
	}
	expect(set.text("spec.serviceName") == "sluice-replicas" && i.objects["Service sluice-replicas"].text("spec.clusterIP") == "None", "the replicas have no names of their own")
	monitor := i.objects["ServiceMonitor sluice"]
	for k, v := range monitor.labels("spec.selector.matchLabels") {
		expect(i.objects["Service sluice-replicas"].labels("metadata.labels")[k] == v, "the ServiceMonitor does not select the service")
	}
	expect(monitor.text("spec.endpoints.0.port") == i.objects["Service sluice-replicas"].text("spec.ports.0.name") && monitor.text("spec.endpoints.0.path") == "/metrics", "the ServiceMonitor scrapes something else")

	// More of them by what they export and the adapter offers.
	hpa, metric := i.objects["HorizontalPodAutoscaler sluice"], strings.ReplaceAll(proxy.MetricInFlight, ".", "_")
	expect(hpa.text("spec.scaleTargetRef.kind")+" "+hpa.text("spec.scaleTargetRef.name") == "StatefulSet sluice", "the autoscaler scales something else")
	expect(hpa.text("spec.metrics.0.pods.metric.name") == metric, "the autoscaler goes by %q, and the proxy exports %s", hpa.text("spec.metrics.0.pods.metric.name"), metric)
	expect(i.adapter.text("rules.0.name.as") == metric && strings.HasPrefix(i.adapter.text("rules.0.seriesQuery"), metric+"{"), "the adapter does not offer %s", metric)
	expect(hpa.number("spec.minReplicas") == set.number("spec.replicas") && set.number("spec.replicas") == 3 && nats.number("spec.replicas") == 3, "there are not three of each")
	for _, name := range []string{"sluice", "nats"} {
		expect(i.objects["PodDisruptionBudget "+name].number("spec.maxUnavailable") == 1, "more than one replica of %s may go at a time", name)
	}

	// Nothing ends before the proxy has ended it.
	pause := time.Duration(container.number("lifecycle.preStop.sleep.seconds")) * time.Second
	grace := time.Duration(pod.number("spec.terminationGracePeriodSeconds")) * time.Second
	expect(pause > 0, "nothing waits until everybody knows that a replica goes")
	expect(grace >= pause+c.ShutdownTimeout+10*time.Second+adminPatience, "terminationGracePeriodSeconds is %v; the pause is %v and shutdown_timeout %v", grace, pause, c.ShutdownTimeout)
	for probe, path := range map[string]string{"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"} {
		expect(container.text(probe+".httpGet.path") == path && container.text(probe+".httpGet.port") == "admin", "%s asks for something else", probe)
	}

	// Files are where the configuration looks for them, and what the proxy writes outlives it.
	kept, made := map[string]string{}, i.readme
	for _, g := range i.kustomization.list("configMapGenerator") {
		made += " configmap " + g.text("name")
	}
	for _, v := range pod.list("spec.volumes") {
		source := v.text("configMap.name") + v.text("secret.secretName")
		kept[v.text("name")] = "read"
		expect(regexp.MustCompile(`(configmap|generic|tls) `+regexp.QuoteMeta(source)+`\b`).MatchString(made), "nothing makes %s", source)
	}
	for _, v := range set.list("spec.volumeClaimTemplates") {
		kept[v.text("metadata.name")] = "written"
	}
	mounts := map[string]string{}
	for _, m := range container.list("volumeMounts") {
		mounts[m.text("mountPath")] = kept[m.text("name")]
	}
	for file, want := range map[string]string{
		c.Listen.TLS.Files.Cert: "read", c.Admin.TokenFile: "read", c.Issuers[0].JWKSFile: "read", c.Sessions.KeyFile: "read", c.Policy.Dir + "/x": "read",
		container.text("args.2"): "read", c.Revocation.File: "written", c.Audit.File.Path: "written",
	} {
		expect(mounts[filepath.Dir(file)] == want, "%s should be %s, and is on %q", file, want, mounts[filepath.Dir(file)])
	}
	expect(container.text("args.0") == "serve" && container.text("args.1") == "--config", "the container does not serve")

	// What they share.
	for n, server := range strings.Split(c.Revocation.Store, ",") {
		u, err := url.Parse(server)
		expect(err == nil && u.Scheme == "nats" && u.Host == fmt.Sprintf("%s-%d.%s:%s", nats.text("metadata.name"), n, nats.text("spec.serviceName"), i.objects["Service nats"].text("spec.ports.0.port")), "%s is not a replica of nats", server)
		expect(err == nil && strings.Contains(fmt.Sprint(i.objects["ConfigMap nats-config"].at("data")), "nats://"+u.Hostname()+":6222"), "%s is not in the cluster", server)
	}
	expect(strings.Count(c.Revocation.Store, ",") == 2, "revocation.store names %s", c.Revocation.Store)
	expect(strings.Contains(fmt.Sprint(i.objects["ConfigMap nats-config"].at("data")), "jetstream"), "NATS has no JetStream")

	// Who may talk to whom.
	policy, guard := i.objects["NetworkPolicy sluice"], i.objects["NetworkPolicy nats"]
	for _, p := range []tree{policy, guard} {
		expect(fmt.Sprint(p.at("spec.policyTypes")) == "[Ingress Egress]", "a network policy leaves one direction open")
	}
	open := map[string]string{}
	for _, direction := range []string{"ingress", "egress"} {
		for _, rule := range policy.list("spec." + direction) {
			for _, p := range rule.list("ports") {
				open[direction+" "+p.text("port")] = fmt.Sprint(rule.at("from"), rule.at("to"))
			}
		}
	}
	for rule, with := range map[string]string{
		"ingress s3": "namespaceSelector", "ingress admin": "monitoring", "egress 53": "kube-system", "egress 4222": "app:nats", "egress 443": "", "egress 80": "169.254.170.23/32",
	} {
		got, ok := open[rule]
		expect(ok && strings.Contains(got, with), "the network policy's %s is %q", rule, got)
	}
	expect(len(open) == 6, "the network policy opens %v", slices.Sorted(maps.Keys(open)))
	clients := fmt.Sprint(guard.at("spec.ingress.0.from"))
	expect(guard.text("spec.ingress.0.ports.0.port") == "client" && clients == "[map[podSelector:map[matchLabels:map[app:sluice]]]]", "others than the replicas may revoke, by NATS: %s", clients)

	// What they may do to the node, and with which identity.
	for name, p := range map[string]tree{"sluice": pod, "nats": tree(nats.labels("spec.template"))} {
		expect(p.text("spec.automountServiceAccountToken") == "false", "%s has the cluster's token", name)
		expect(p.text("spec.securityContext.runAsNonRoot") == "true" && p.text("spec.securityContext.seccompProfile.type") == "RuntimeDefault" && p.number("spec.securityContext.fsGroup") > 0, "%s: the pod's securityContext", name)
		of := tree(p.labels("spec.containers.0.securityContext"))
		expect(of.text("allowPrivilegeEscalation") == "false" && of.text("readOnlyRootFilesystem") == "true" && of.text("capabilities.drop") == "[ALL]", "%s: the container's securityContext", name)
		expect(p.text("spec.containers.0.resources.limits.memory") != "", "%s has no limit of memory", name)
	}
	expect(i.objects["Namespace sluice"].labels("metadata.labels")["pod-security.kubernetes.io/enforce"] == "restricted", "the namespace enforces no pod security")
	role, _ := i.objects["ServiceAccount sluice"].labels("metadata.annotations")["eks.amazonaws.com/role-arn"].(string)
	expect(strings.HasPrefix(role, "arn:aws:iam::") && pod.text("spec.serviceAccountName") == "sluice", "the replicas have no base role (IRSA)")
	expect(c.Backends[0].Credentials.AssumeRole != nil && c.Backends[0].Credentials.AssumeRole.RoleARN != role, "the base role is the one that workspaces act as")
	expect(mebibytes(container.text("env.0.value")) > 0 && container.text("env.0.name") == "GOMEMLIMIT" && mebibytes(container.text("env.0.value")) < mebibytes(container.text("resources.limits.memory")), "GOMEMLIMIT is not below the container's limit")

	// A workspace's token is for us.
	token := tree(builder.labels("spec.volumes.0.projected.sources.0.serviceAccountToken"))
	expect(slices.Contains(c.Issuers[0].Audiences, token.text("audience")), "the workspace's token is for %q", token.text("audience"))
	expect(builder.text("spec.serviceAccountName") == "builder" && i.objects["ServiceAccount builder"].text("automountServiceAccountToken") == "false", "the workspace has the cluster's token")
	environment := map[string]string{}
	for _, e := range builder.list("spec.containers.0.env") {
		environment[e.text("name")] = e.text("value")
	}
	expect(environment["AWS_WEB_IDENTITY_TOKEN_FILE"] == builder.text("spec.containers.0.volumeMounts.0.mountPath")+"/"+token.text("path"), "the workspace looks for its token elsewhere")
	for _, name := range []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS"} {
		u, err := url.Parse(environment[name])
		expect(err == nil && slices.Contains(c.Listen.Domains, u.Host), "%s is %q", name, environment[name])
	}
	return problems
}

func mebibytes(text string) int {
	n, _ := strconv.Atoi(strings.TrimRight(strings.TrimSuffix(text, "B"), "Mi"))
	return n
}

// What people install on a cluster fits together: the manifests with each other, with the configuration and with what the
// proxy exports.
func TestKubernetesExample(t *testing.T) {
	for _, p := range readInstallation(t, func(_, text string) string { return text }).problems() {
		t.Error(p)
	}

	// Whatever is taken away or altered is found.
	for _, file := range []string{"namespace.yaml", "proxy.yaml", "network.yaml", "scaling.yaml", "monitoring.yaml", "nats.yaml", "workspace.yaml"} {
		text, err := os.ReadFile(filepath.Join("..", "..", "examples", "kubernetes", file))
		if err != nil {
			t.Fatal(err)
		}
		documents := strings.Split(string(text), "\n---\n")
		for n := range documents {
			without := strings.Join(slices.Delete(slices.Clone(documents), n, n+1), "\n---\n")
			if len(readInstallation(t, func(name, text string) string {
				if name == file {
					return without
				}
				return text
			}).problems()) == 0 {
				t.Errorf("%s without its document %d is taken for whole", file, n+1)
			}
		}
	}
	for _, change := range [][3]string{
		{"proxy.yaml", "terminationGracePeriodSeconds: 50", "terminationGracePeriodSeconds: 40"},
		{"sluice.yaml", "shutdown_timeout: 30s", "shutdown_timeout: 60s"},
		{"proxy.yaml", "containerPort: 8443", "containerPort: 8080"},
		{"proxy.yaml", "path: /readyz", "path: /healthz"},
		{"proxy.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"},
		{"proxy.yaml", "runAsNonRoot: true", "runAsNonRoot: false"},
		{"proxy.yaml", "eks.amazonaws.com/role-arn", "eks.amazonaws.com/audience"},
		{"proxy.yaml", "value: 400MiB", "value: 600MiB"},
		{"proxy.yaml", "secretName: sluice-tls", "secretName: sluice-cert"},
		{"proxy.yaml", "mountPath: /var/lib/sluice", "mountPath: /data"},
		{"proxy.yaml", "sleep: {seconds: 5}", "sleep: {seconds: 0}"},
		{"scaling.yaml", "sluice_requests_in_flight", "sluice_in_flight"},
		{"adapter.yaml", "sluice_requests_in_flight", "sluice_in_flight"},
		{"scaling.yaml", "kind: StatefulSet, name: sluice", "kind: Deployment, name: sluice"},
		{"monitoring.yaml", "port: admin", "port: metrics"},
		{"monitoring.yaml", "role: replicas", "role: all"},
		{"network.yaml", "- {port: 4222}", "- {port: 4223}"},
		{"network.yaml", "- {port: 443}", "- {port: 444}"},
		{"network.yaml", "policyTypes: [Ingress, Egress]", "policyTypes: [Ingress]"},
		{"network.yaml", "matchLabels: {app: sluice}\n    - ports:\n        - {port: cluster}", "matchLabels: {}\n    - ports:\n        - {port: cluster}"},
		{"sluice.yaml", "nats-2.nats", "nats-3.nats"},
		{"nats.yaml", "nats-2.nats:6222", "nats-3.nats:6222"},
		{"nats.yaml", "jetstream:", "nothing:"},
		{"sluice.yaml", "file: /var/lib/sluice/revocations", "file: /tmp/revocations"},
		{"sluice.yaml", "domains: [s3.example.com]", "domains: [s3.example.org]"},
		{"workspace.yaml", `audience: "https://s3.example.com"`, `audience: "https://sts.amazonaws.com"`},
		{"workspace.yaml", "value: /var/run/sluice/token", "value: /var/run/token"},
		{"kustomization.yaml", "  - monitoring.yaml\n", ""},
		{"kustomization.yaml", "name: sluice-policies", "name: policies"},
		{"README.md", "create secret generic sluice-admin", "create secret generic admin"},
	} {
		found := false
		problems := readInstallation(t, func(name, text string) string {
			if name == change[0] {
				found = strings.Contains(text, change[1])
				return strings.Replace(text, change[1], change[2], 1)
			}
			return text
		}).problems()
		if !found || len(problems) == 0 {
			t.Errorf("%s with %q for %q is taken for whole (is there: %v)", change[0], change[2], change[1], found)
		}
	}
}
