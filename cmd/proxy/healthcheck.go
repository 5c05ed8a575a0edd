package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// healthcheckCommand is for images that have no curl, as ours.
type healthcheckCommand struct {
	Admin string `default:"http://127.0.0.1:9090" placeholder:"URL" help:"The admin listener [${default}]."`
	Ready bool   `help:"Ask whether it is ready to serve, not just alive."`
}

func (healthcheckCommand) Example() string {
	return "proxy healthcheck --admin http://127.0.0.1:9090 --ready"
}

func (cmd healthcheckCommand) Run() error {
	if u, err := url.Parse(cmd.Admin); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return misuse{fmt.Errorf("--admin %q is not a URL such as http://127.0.0.1:9090", cmd.Admin)}
	}
	path := "/healthz"
	if cmd.Ready {
		path = "/readyz"
	}
	client := &http.Client{Timeout: 2 * time.Second}
	response, err := client.Get(strings.TrimRight(cmd.Admin, "/") + path)
	if err != nil {
		return fmt.Errorf("%w; if admin.address is another than %s, name it by --admin", err, cmd.Admin)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return fmt.Errorf("%s: %s", response.Status, oneLine(fmt.Errorf("%s", why)))
	}
	return nil
}
