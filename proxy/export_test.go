package proxy

import (
	"fmt"
	"reflect"
)

// InProgress counts the calls that are looked after.
func (p *Proxy) InProgress() (n int) {
	p.calls.mu.Lock()
	defer p.calls.mu.Unlock()
	for at := p.calls.head.next; at != &p.calls.head; at = at.next {
		n++
	}
	return n
}

// Unblank takes n calls that are there to be used again, and tells what of requests is left in them.
func Unblank(n int) (left []string) {
	for range n {
		c := retired.Get().(*call)
		if len(c.room.header) > 0 {
			left = append(left, fmt.Sprint("header: ", c.room.header))
		}
		c.room.header, c.room.moved = nil, nil
		for i, v := 0, reflect.ValueOf(c).Elem(); i < v.NumField(); i++ {
			if !v.Field(i).IsZero() {
				left = append(left, v.Type().Field(i).Name)
			}
		}
	}
	return left
}

// Subject is who policy is asked about for an identity.
var Subject = subject
