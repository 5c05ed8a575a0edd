// Command kubernetes checks manifests on standard input against Kubernetes' own API types: a field that they do not have, or
// of another type, is an error. It is a module of its own, so that the proxy's does not have Kubernetes in it.
//
//	kustomize build examples/kubernetes | (cd .ci/kubernetes && go run .)
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// serviceMonitor is what examples may use of the Prometheus operator's type.
type serviceMonitor struct {
	metav1.TypeMeta
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     struct {
		Selector  metav1.LabelSelector `json:"selector"`
		Endpoints []struct {
			Port     string `json:"port"`
			Path     string `json:"path"`
			Interval string `json:"interval"`
		} `json:"endpoints"`
	} `json:"spec"`
}

var types = map[string]func() any{
	"v1 Namespace":      func() any { return new(corev1.Namespace) },
	"v1 ConfigMap":      func() any { return new(corev1.ConfigMap) },
	"v1 Service":        func() any { return new(corev1.Service) },
	"v1 ServiceAccount": func() any { return new(corev1.ServiceAccount) },
	"v1 Pod":            func() any { return new(corev1.Pod) },

	"apps/v1 StatefulSet":                     func() any { return new(appsv1.StatefulSet) },
	"policy/v1 PodDisruptionBudget":           func() any { return new(policyv1.PodDisruptionBudget) },
	"autoscaling/v2 HorizontalPodAutoscaler":  func() any { return new(autoscalingv2.HorizontalPodAutoscaler) },
	"networking.k8s.io/v1 NetworkPolicy":      func() any { return new(networkingv1.NetworkPolicy) },
	"monitoring.coreos.com/v1 ServiceMonitor": func() any { return new(serviceMonitor) },
}

func main() {
	if err := check(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(in io.Reader) error {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(in))
	count := 0
	var problems []error
	for {
		text, err := documents.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		var head struct {
			metav1.TypeMeta   `json:",inline"`
			metav1.ObjectMeta `json:"metadata"`
		}
		if err := yaml.Unmarshal(text, &head); err != nil {
			return err
		}
		if head.Kind == "" {
			continue
		}
		what := head.APIVersion + " " + head.Kind
		object := types[what]
		if object == nil {
			problems = append(problems, fmt.Errorf("%s %s: not a type that is checked here", what, head.Name))
			continue
		}
		if err := yaml.UnmarshalStrict(text, object()); err != nil {
			problems = append(problems, fmt.Errorf("%s %s: %w", what, head.Name, err))
		}
		count++
	}
	if count == 0 {
		problems = append(problems, errors.New("no manifests on standard input"))
	}
	fmt.Printf("%d manifests, %d problems\n", count, len(problems))
	return errors.Join(problems...)
}
