package identity

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Timing shortens what a key set waits for.
type Timing struct{ Cooldown, Absent, Refresh, File, Retry, Stale, Timeout time.Duration }

// SetTiming has c's issuers go by t; zero stays the default.
func SetTiming(c *Config, t Timing) {
	timing := defaultKeyTiming
	set := func(to *time.Duration, d time.Duration) {
		if d != 0 {
			*to = d
		}
	}
	set(&timing.cooldown, t.Cooldown)
	set(&timing.absent, t.Absent)
	set(&timing.refresh, t.Refresh)
	set(&timing.file, t.File)
	set(&timing.retry, t.Retry)
	set(&timing.stale, t.Stale)
	set(&timing.timeout, t.Timeout)
	timing.maxRetry = max(timing.retry, min(timing.maxRetry, 8*timing.retry))
	c.timing = &timing
}

// KeyCooldown is between two fetches that tokens cause.
var KeyCooldown = defaultKeyTiming.cooldown

// MaxTokenAge is for how long after its iat a token is accepted.
const MaxTokenAge = maxTokenAge

// RevocationLife is for how long a revocation lasts where nobody says otherwise.
const RevocationLife = revocationLife

// ForgetEnded does at once what happens every minute.
func (r *Revocations) ForgetEnded() int {
	ended := r.dropEnded()
	if r.nats != nil {
		r.nats.forget(context.Background(), ended)
	}
	return len(ended)
}

// Presets are the names of all.
func Presets() []string { return slices.Sorted(maps.Keys(presets)) }

// PresetTable is what docs/identity.md says of the presets.
func PresetTable() []string {
	var rows []string
	for _, name := range Presets() {
		row := "| `" + name + "` |"
		preset := presets[name]
		for _, claims := range [][]string{preset.workspace, preset.project, preset.repository, preset.user, preset.groups} {
			var cells []string
			for _, claim := range claims {
				cells = append(cells, "`"+claim+"`")
			}
			if len(cells) == 0 {
				cells = []string{"–"}
			}
			row += " " + strings.Join(cells, ", else ") + " |"
		}
		rows = append(rows, row)
	}
	return rows
}

// ReloadKeys reads the session keys again now. Where the file is not good the old keys stay in use.
func (a *Authenticator) ReloadKeys() error { return a.sessions.reload() }

// TellStore tells the store what it lacks, as if it had been read from began on, and nothing been found.
func (r *Revocations) TellStore(ctx context.Context, kv jetstream.KeyValue, began time.Time) error {
	return r.nats.tell(ctx, kv, map[string]bool{}, began)
}

// FollowsStore is whether it may still read the store by itself.
func (r *Revocations) FollowsStore() bool { return !r.nats.conn.IsClosed() }
