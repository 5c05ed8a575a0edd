package replicas

import (
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/sluice-s3/sluice/test/machine"
)

// A session has its limit over all replicas together, and learns by SlowDown and Retry-After to slow down; an SDK with its
// own retries gets through.
func TestLimitsOverReplicas(t *testing.T) {
	const perSecond, seconds = 40, 4
	f := newFleet(t, 2, 1, map[string]any{"limits.requests_per_second": perSecond})
	f.store("web/small", []byte("x"))
	var served, slowed atomic.Int64
	var all sync.WaitGroup
	watch := machine.Watch(t)
	end := time.Now().Add(seconds * time.Second)
	for _, p := range f.proxies {
		for range 2 {
			all.Go(func() {
				for ; time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
					answer, err := http.DefaultClient.Do(f.bearer("HEAD", p.URL, "web/small", f.workspace("env-greedy"), nil, 0))
					if err != nil {
						t.Error(err)
						return
					}
					answer.Body.Close()
					switch {
					case answer.StatusCode == 200:
						served.Add(1)
					case answer.StatusCode == 503 && slices.Contains([]string{"1", "2", "3"}, answer.Header.Get("Retry-After")):
						slowed.Add(1)
					default:
						t.Errorf("%s, %v", answer.Status, answer.Header)
					}
				}
			})
		}
	}
	all.Wait()
	// The limit, a burst, and what two replicas hand out before they have heard of each other. Where the machine stood still
	// nobody asked, and nobody heard.
	late := int64(perSecond * watch.Excuse().Seconds() / 10)
	most := int64(perSecond*seconds+2*perSecond*5/4) + late
	t.Logf("%d served and %d slowed down in %d s by two replicas; the limit makes %d, and at most %d", served.Load(), slowed.Load(), seconds, perSecond*seconds, most)
	if n := served.Load(); n > most+perSecond/4 || n < perSecond*seconds*3/4-late {
		t.Errorf("%d served", n)
	}

	// With ten attempts, as docs/replicas.md advises: three may all come before there is room, by chance.
	client := f.client(f.proxies[0].URL, f.session(f.proxies[0].URL, f.workspace("env-polite")), func(o *s3.Options) { o.RetryMaxAttempts = 10 })
	began := time.Now()
	for range 3 * perSecond {
		if _, err := client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String("artifacts"), Key: aws.String("web/small")}); err != nil {
			t.Fatalf("the SDK's own retries do not get through: %v", err)
		}
	}
	t.Logf("the SDK made %d requests in %v", 3*perSecond, time.Since(began).Round(time.Millisecond))
}

// One workspace floods the proxy from more connections than it may have requests in flight at all. The others notice
// little: it is held to its own limits, and refusing costs less than serving.
func TestFairness(t *testing.T) {
	f := newFleet(t, 1, 1, map[string]any{
		"limits.max_in_flight": 256, "limits.in_flight": 8, "limits.requests_per_second": 100,
	})
	endpoint := f.proxies[0].URL
	f.store("web/small", make([]byte, 10<<10))
	measure := func() (p50, p99 time.Duration) {
		var took []time.Duration
		var mu sync.Mutex
		var all sync.WaitGroup
		for _, name := range []string{"env-a", "env-b", "env-c"} {
			token := f.workspace(name)
			all.Go(func() {
				for range 100 {
					began := time.Now()
					got, body := f.answer(f.bearer("GET", endpoint, "web/small", token, nil, 0))
					d := time.Since(began)
					if got != 200 {
						t.Errorf("%s: %d %s", name, got, body)
					}
					mu.Lock()
					took = append(took, d)
					mu.Unlock()
					time.Sleep(15 * time.Millisecond)
				}
			})
		}
		all.Wait()
		slices.Sort(took)
		return took[len(took)/2], took[len(took)*99/100]
	}
	alone50, alone99 := measure()

	var stop atomic.Bool
	var served, slowed atomic.Int64
	var flood sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
	token := f.workspace("env-greedy")
	for range 32 {
		flood.Go(func() {
			for !stop.Load() {
				answer, err := client.Do(f.bearer("GET", endpoint, "web/small", token, nil, 0))
				if err != nil {
					continue
				}
				answer.Body.Close()
				if answer.StatusCode == 200 {
					served.Add(1)
				} else {
					slowed.Add(1)
				}
			}
		})
	}
	watch := machine.Watch(t)
	beside50, beside99 := measure()
	excuse := watch.Excuse()
	stop.Store(true)
	flood.Wait()
	t.Logf("alone p50 %v p99 %v; beside a flood (%d served, %d slowed down) p50 %v p99 %v", alone50, alone99, served.Load(), slowed.Load(), beside50, beside99)
	if most := max(20*alone99, 500*time.Millisecond) + excuse/10; beside99 > most {
		t.Errorf("p99 beside a flood is %v", beside99)
	}
}
