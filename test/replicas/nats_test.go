package replicas

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/sluice-s3/sluice/test/machine"
)

// natsNode is a NATS server in a process of its own, that can die, hang and come back.
type natsNode struct {
	Name    string
	Port    int
	Cluster int // its port; 0 = none
	Routes  string
	Dir     string

	t   *testing.T
	cmd *exec.Cmd
}

// natsVariable makes this program a NATS server.
const natsVariable = "SLUICE_TEST_NATS_SERVER"

// natsMain does not return in a process that start made.
func natsMain() {
	config := os.Getenv(natsVariable)
	if config == "" {
		return
	}
	err := func() error {
		var n natsNode
		if err := json.Unmarshal([]byte(config), &n); err != nil {
			return err
		}
		o := &server.Options{ServerName: n.Name, Host: "127.0.0.1", Port: n.Port, JetStream: true, StoreDir: n.Dir, NoLog: true, NoSigs: true}
		if n.Cluster != 0 {
			o.Cluster = server.ClusterOpts{Name: "sluice", Host: "127.0.0.1", Port: n.Cluster}
			o.Routes = server.RoutesFromStr(n.Routes)
		}
		s, err := server.NewServer(o)
		if err != nil {
			return err
		}
		s.Start()
		if !s.ReadyForConnections(20 * time.Second) {
			return fmt.Errorf("NATS server %s does not start", n.Name)
		}
		fmt.Println("ready")
		_, err = io.Copy(io.Discard, os.Stdin) // until the test has ended
		return err
	}()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// startNATS starts a server, or a cluster of them.
func startNATS(t *testing.T, n int) []*natsNode {
	t.Helper()
	nodes := make([]*natsNode, n)
	var routes []string
	for i := range nodes {
		nodes[i] = &natsNode{t: t, Name: fmt.Sprintf("n%d", i), Port: machine.FreePort(t), Dir: t.TempDir()}
		if n > 1 {
			nodes[i].Cluster = machine.FreePort(t)
			routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", nodes[i].Cluster))
		}
	}
	for _, node := range nodes {
		node.Routes = strings.Join(routes, ",")
		node.start()
		t.Cleanup(node.kill)
	}
	return nodes
}

func (n *natsNode) start() {
	n.t.Helper()
	config, err := json.Marshal(n)
	if err != nil {
		n.t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	n.cmd = exec.Command(program)
	n.cmd.Env = append(os.Environ(), natsVariable+"="+string(config))
	if _, err := n.cmd.StdinPipe(); err != nil { // ends with this process, and the server with it
		n.t.Fatal(err)
	}
	stdout, err := n.cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		n.t.Fatalf("NATS server: %q, %v", line, err)
	}
}

// kill ends the server as a crash would.
func (n *natsNode) kill() {
	n.cmd.Process.Kill()
	n.cmd.Wait()
}

// hang has the server answer no more, without a word: its connections stay.
func (n *natsNode) hang() { n.cmd.Process.Signal(syscall.SIGSTOP) }

func (n *natsNode) wake() { n.cmd.Process.Signal(syscall.SIGCONT) }

// One of three NATS servers dies or hangs, and in that moment somebody is revoked at one of three replicas: within a second they
// are refused at all three. SLUICE_LONG=1 does it forty times.
func TestRevokedAsNATSDies(t *testing.T) {
	rounds := 4
	if os.Getenv("SLUICE_LONG") != "" {
		rounds = 40
	}
	f := newFleet(t, 3, 3, nil)
	f.store("web/small", []byte("x"))
	random := rand.New(rand.NewPCG(1, 2))
	took := map[string][]time.Duration{}
	for round, excused := 0, 0; round < rounds; {
		node, replica := f.nats[random.IntN(3)], random.IntN(3)
		session := fmt.Sprintf("gone-%d-%d", round, excused)
		token := f.workspace(session)
		fault := []string{"dies", "hangs"}[round%2]
		if fault == "dies" {
			node.kill()
		} else {
			node.hang()
		}
		time.Sleep(time.Duration(round/2%4) * 150 * time.Millisecond) // the moment, and some after it
		watch := machine.Watch(t)
		began := time.Now()
		var all sync.WaitGroup
		all.Go(func() { f.revoke(replica, map[string]any{"session": session}) })
		last := make([]time.Duration, len(f.proxies))
		for i, p := range f.proxies {
			all.Go(func() {
				for status(f.bearer("GET", p.URL, "web/small", token, nil, 0)) != 403 && time.Since(began) < 20*time.Second {
					time.Sleep(time.Millisecond)
				}
				last[i] = time.Since(began)
			})
		}
		all.Wait()
		slowest, excuse := slices.Max(last), watch.Excuse()
		if fault == "dies" {
			node.start()
		} else {
			node.wake()
		}
		f.shared()
		switch {
		case slowest <= time.Second:
		case slowest <= time.Second+excuse:
			// Nobody keeps a second on a machine that others have for a part of it.
			t.Logf("round %d does not count: %v, of which the machine may have cost %v", round, slowest, excuse)
			if excused++; excused > rounds {
				t.Skip("SKIPPED: this machine is too busy to tell")
			}
			continue
		default:
			t.Errorf("round %d: server %s %s, revoked at replica %d: refused at the replicas after %v", round, node.Name, fault, replica, last)
		}
		took[fault] = append(took[fault], slowest)
		round++
	}
	for _, fault := range []string{"dies", "hangs"} {
		d := took[fault]
		slices.Sort(d)
		t.Logf("a NATS server %s, %d times: refused at all replicas after %v (least), %v (median), %v (most)", fault, len(d),
			d[0].Round(time.Millisecond), d[len(d)/2].Round(time.Millisecond), d[len(d)-1].Round(time.Millisecond))
	}
}
