package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/go-git/go-git/v5/plumbing/transport"
	gitssh "github.com/go-git/go-git/v5/plumbing/transport/ssh"
	"golang.org/x/crypto/ssh"
	"golang.org/x/net/proxy"
)

// sshAuth is who we are, and which host keys we believe: those of known_hosts files and no others.
func (c *Git) sshAuth(endpoint *transport.Endpoint) (transport.AuthMethod, error) {
	var files []string // none = the user's and the system's
	if c.KnownHostsFile != "" {
		files = []string{c.KnownHostsFile}
	}
	known, err := gitssh.NewKnownHostsDb(files...)
	if err != nil {
		return nil, fmt.Errorf("known_hosts: %w", err)
	}
	helper := gitssh.HostKeyCallbackHelper{
		HostKeyCallback: known.HostKeyCallback(),
		// Of the server's keys, one that is known: it has several, and would show another first.
		HostKeyAlgorithms: known.HostKeyAlgorithms(net.JoinHostPort(endpoint.Host, strconv.Itoa(cmp.Or(endpoint.Port, gitssh.DefaultPort)))),
	}
	user := cmp.Or(endpoint.User, "git")
	if c.SSHKeyFile == "" {
		agent, err := gitssh.NewSSHAgentAuth(user)
		if err != nil {
			return nil, fmt.Errorf("no ssh_key_file, and no agent: %w", err)
		}
		agent.HostKeyCallbackHelper = helper
		return agent, nil
	}
	content, err := os.ReadFile(c.SSHKeyFile)
	if err != nil {
		return nil, fmt.Errorf("ssh_key_file: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(content)
	if _, locked := errors.AsType[*ssh.PassphraseMissingError](err); locked {
		return nil, fmt.Errorf("ssh_key_file: it has a passphrase, which nobody is here to give: use a key of its own without one")
	}
	if err != nil {
		return nil, fmt.Errorf("ssh_key_file: %w", err)
	}
	return &gitssh.PublicKeys{User: user, Signer: signer, HostKeyCallbackHelper: helper}, nil
}

// dialUntil gives connections over ssh an end. go-git asks the context nothing there, so a server that accepts and then
// says nothing would hold up this look at the repository, and every later one, for ever. What go-git does ask, in a
// table of dialers that is the whole process's, is how to connect through a proxy of a kind it does not know.
func (c *Git) dialUntil(ctx context.Context) transport.ProxyOptions {
	endpoint, err := transport.NewEndpoint(c.URL)
	deadline, ok := ctx.Deadline()
	if err != nil || !ok || endpoint.Protocol != "ssh" {
		return transport.ProxyOptions{}
	}
	return transport.ProxyOptions{URL: (&url.URL{Scheme: untilScheme, Host: "deadline", Path: deadline.Format(time.RFC3339Nano)}).String()}
}

const untilScheme = "sluice-until"

func init() {
	proxy.RegisterDialerType(untilScheme, func(u *url.URL, _ proxy.Dialer) (proxy.Dialer, error) {
		deadline, err := time.Parse("/"+time.RFC3339Nano, u.Path)
		return until(deadline), err
	})
}

// until dials connections that end at a time. It goes through the proxies of the environment, as go-git does.
type until time.Time

func (d until) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

func (d until) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithDeadline(ctx, time.Time(d))
	defer cancel()
	conn, err := proxy.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Time(d))
}
