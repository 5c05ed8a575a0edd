package main

import "testing"

func TestBucketsStandInTheHostWhereTheyCan(t *testing.T) {
	for _, c := range []struct {
		backend Backend
		host    string
		path    bool
	}{
		{Backend{Region: "eu-west-1"}, "s3.eu-west-1.amazonaws.com", false},
		{Backend{Region: "cn-north-1"}, "s3.cn-north-1.amazonaws.com.cn", false},
		{Backend{Region: "eu-west-1", PathStyle: true}, "s3.eu-west-1.amazonaws.com", true},
		{Backend{Endpoint: "https://minio.example.com:9000"}, "minio.example.com:9000", false},
		{Backend{Endpoint: "https://minio.example.com:9000/", PathStyle: true}, "minio.example.com:9000", true},
		{Backend{Endpoint: "http://127.0.0.1:9000"}, "127.0.0.1:9000", true},
		{Backend{Endpoint: "http://[::1]:9000"}, "[::1]:9000", true},
		{Backend{Endpoint: "http://localhost:9000"}, "localhost:9000", true},
	} {
		b, err := c.backend.build(nil, Limits{})
		if err != nil {
			t.Errorf("%+v: %v", c.backend, err)
		} else if b.Endpoint.Host != c.host || b.PathStyle != c.path {
			t.Errorf("%+v: host %q, path style %t; want %q, %t", c.backend, b.Endpoint.Host, b.PathStyle, c.host, c.path)
		}
	}
}
