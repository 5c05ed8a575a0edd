package main

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sluice-s3/sluice/test/machine"
)

// head is a header block of HTTP/2: a PUT with these fields more.
func head(more ...string) []byte {
	var block strings.Builder
	encoder := hpack.NewEncoder(&block)
	fields := append([]string{":method", "PUT", ":scheme", "https", ":authority", "front.test", ":path", "/b/k"}, more...)
	for i := 0; i < len(fields); i += 2 {
		encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return []byte(block.String())
}

// An upload whose length is not what it said, or that is reset, never looks whole to who reads it.
func TestStreamsOfAnotherLength(t *testing.T) {
	bothSides(t, func(t *testing.T) {
		for what, send := range map[string]func(f *http2.Framer) error{
			"short": func(f *http2.Framer) error { return f.WriteData(1, true, []byte("hal")) },
			"long":  func(f *http2.Framer) error { return f.WriteData(1, true, []byte("too much")) },
			"short, with trailers": func(f *http2.Framer) error {
				f.WriteData(1, false, []byte("hal"))
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true})
			},
			"reset": func(f *http2.Framer) error {
				f.WriteData(1, false, []byte("hal"))
				return f.WriteRSTStream(1, http2.ErrCodeCancel)
			},
		} {
			t.Run(what, func(t *testing.T) {
				read := make(chan error, 1)
				address := front(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, err := io.Copy(io.Discard, r.Body)
					read <- err
				}), 5*time.Second)
				f := streams(t, connect(t, address, "h2"), 0, 1<<16)
				if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head("content-length", "5"), EndHeaders: true}); err != nil {
					t.Fatal(err)
				}
				if err := send(f); err != nil {
					t.Fatal(err)
				}
				select {
				case err := <-read:
					if err == nil {
						t.Error("it looks whole")
					}
				case <-time.After(machine.Patience):
					t.Error("whoever reads it hangs")
				}
			})
		}
	})
}

// Streams that are opened and reset in a loop are not served beyond the streams that a connection may have, and end it.
func TestStreamsResetInALoop(t *testing.T) {
	bothSides(t, func(t *testing.T) {
		var begun atomic.Int64
		held := make(chan struct{})
		address := front(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { begun.Add(1); <-held }), 5*time.Second)
		t.Cleanup(func() { close(held) })
		c := connect(t, address, "h2")
		f := streams(t, c, 0, 1<<16)
		go func() {
			for id := uint32(1); ; id += 2 {
				if f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head(), EndStream: true, EndHeaders: true}) != nil ||
					f.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
					return
				}
			}
		}()
		most, away := int64(1000), false
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				break
			}
			switch frame := frame.(type) {
			case *http2.SettingsFrame:
				if n, ok := frame.Value(http2.SettingMaxConcurrentStreams); ok {
					most = int64(n)
				}
			case *http2.GoAwayFrame:
				away = frame.ErrCode == http2.ErrCodeEnhanceYourCalm
			}
		}
		if n := begun.Load(); n == 0 || n > most || !away {
			t.Errorf("%d handlers of %d; the connection ended for it: %v", n, most, away)
		}
	})
}

// A header beyond 64 KiB is net/http's to refuse, and one without end ends the connection: nothing of either is served.
func TestStreamsWithLongHeads(t *testing.T) {
	bothSides(t, func(t *testing.T) {
		address := front(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Error("it is served") }), 5*time.Second)
		for what, frames := range map[string]int{"one too long": 5, "one without end": 1 << 20} {
			t.Run(what, func(t *testing.T) {
				f := streams(t, connect(t, address, "h2"), 0, 1<<16)
				f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
				go func() {
					field := head("x-amz-meta-a", strings.Repeat("~", 900))[len(head()):]
					more := bytes.Repeat(field, 17) // as many as a frame takes
					if f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head(), EndStream: true}) != nil {
						return
					}
					for i := range frames {
						if i == frames-1 {
							more = more[:2*len(field)] // much more at once ends the connection, too
						}
						if f.WriteContinuation(1, i == frames-1, more) != nil {
							return
						}
					}
				}()
				for {
					frame, err := f.ReadFrame()
					if err != nil {
						if strings.Contains(err.Error(), "timeout") {
							t.Error("the connection stays")
						}
						return
					}
					switch frame := frame.(type) {
					case *http2.MetaHeadersFrame:
						if status := frame.PseudoValue("status"); status != "431" || what != "one too long" {
							t.Errorf("status %s", status)
						}
						return
					case *http2.GoAwayFrame:
						if what != "one without end" {
							t.Errorf("the connection ends: %v", frame.ErrCode)
						}
						return
					}
				}
			})
		}
	})
}
