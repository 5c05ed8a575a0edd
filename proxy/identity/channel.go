package identity

import "github.com/nats-io/nats.go"

// Channel carries messages between the replicas that share a store of revocations. They arrive once or not at all, and at
// whoever sent them too.
type Channel struct {
	conn    *nats.Conn
	subject string
}

// Channel is the one of that name, on the subject <bucket>.<name>; nil where the store is memory. It ends with the
// Revocations.
func (r *Revocations) Channel(name string) *Channel {
	if r.nats == nil {
		return nil
	}
	return &Channel{r.nats.conn, r.nats.bucket + "." + name}
}

// Publish fails at once where the store cannot be reached.
func (c *Channel) Publish(data []byte) error { return c.conn.Publish(c.subject, data) }

// Subscribe calls f for every message, one after another, until stop is called. It outlives interruptions.
func (c *Channel) Subscribe(f func(data []byte)) (stop func(), err error) {
	s, err := c.conn.Subscribe(c.subject, func(m *nats.Msg) { f(m.Data) })
	if err != nil {
		return nil, err
	}
	return func() { _ = s.Unsubscribe() }, nil
}
