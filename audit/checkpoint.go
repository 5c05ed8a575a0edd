package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"
)

// Checkpoint is one line of the file beside the log that is signed: the chain stood so, then. The signature is
// over the bytes of the line up to, and without, `,"signature"`.
type Checkpoint struct {
	Schema    string    `json:"schema"`
	N         uint64    `json:"n"`    // from 1, without gaps
	Seq       uint64    `json:"seq"`  // of the log's line
	Hash      string    `json:"hash"` // of it
	Time      time.Time `json:"time"`
	KeyID     string    `json:"key_id"`
	Prev      string    `json:"prev"` // sha256 of the checkpoint before
	Signature string    `json:"signature"`
}

const (
	checkpointSchema = "sluice.checkpoint/1"
	signatureMark    = `,"signature":"`

	checkpointEvery = 10 * time.Second
	checkpointLines = 100_000
)

// checkpointer signs where the chain stands. It is the writer's. A checkpoint that cannot be written is tried
// again: the events are in the log all the same.
type checkpointer struct {
	path   string
	key    ed25519.PrivateKey
	keyID  string
	logger *slog.Logger

	n      uint64
	prev   string
	signed uint64 // the line of the last checkpoint
	bad    bool
	due    *time.Timer // nil = no new line since
	f      *os.File
	size   int64
}

// openCheckpoints opens the file at path, and holds the log's end against its last checkpoint.
func openCheckpoints(path, keyFile string, end chainEnd, logger *slog.Logger) (*checkpointer, error) {
	key, err := readSigningKey(keyFile)
	if err != nil {
		return nil, err
	}
	path = behindLinks(path) // and no link that is put there later
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|noFollow, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open the audit log's checkpoints: %w", err)
	}
	c := &checkpointer{path: path, key: key, keyID: keyID(key.Public().(ed25519.PublicKey)), logger: logger, prev: noPrev, f: f}
	last, err := c.readLast()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read the audit log's checkpoints %s: %w", path, err)
	}
	if last.Seq > end.seq {
		logger.Error("the audit log ends before its last checkpoint: lines were removed, or lost with the machine's power", "last_seq", end.seq, "checkpoint_seq", last.Seq)
	}
	c.signed = min(last.Seq, end.seq)
	if last.KeyID != c.keyID && (chainEnd{last.Seq, last.Hash}) == end {
		c.signed = 0 // another key takes over at once, and not with the next event: see VerifyOptions
		c.sign(end)
	}
	return c, nil
}

// lastCheckpoint is what the newest checkpoint of a log says, without asking who signed it.
func lastCheckpoint(log string) witness {
	f, err := os.Open(log + checkpointsSuffix)
	if err != nil {
		return witness{}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return witness{}
	}
	for at := info.Size(); at > 0; {
		line, start, terminated, err := lineBefore(f, at)
		if err != nil {
			break
		}
		var c Checkpoint
		if terminated && json.Unmarshal(line, &c) == nil && c.Schema == checkpointSchema && len(c.Hash) == len(noPrev) {
			return witness{chainEnd{c.Seq, c.Hash}, checkpointsSuffix}
		}
		at = start
	}
	return witness{}
}

func (c *checkpointer) readLast() (last Checkpoint, err error) {
	info, err := c.f.Stat()
	if err != nil {
		return last, err
	}
	if !info.Mode().IsRegular() {
		return last, errNoFile
	}
	c.size = info.Size()
	for c.size > 0 {
		line, start, terminated, err := lineBefore(c.f, c.size)
		if err != nil {
			return last, err
		}
		if !terminated { // a death in the middle
			if err := c.f.Truncate(start); err != nil {
				return last, err
			}
			c.size = start
			continue
		}
		if err := json.Unmarshal(line, &last); err != nil || last.Schema != checkpointSchema {
			return last, errors.New("its last line is no checkpoint: move the file away, and keep it")
		}
		c.n, c.prev = last.N, lineHash(line)
		break
	}
	return last, nil
}

// note hears that the log has grown.
func (c *checkpointer) note(end chainEnd) {
	if end.seq == c.signed {
		return
	}
	if c.due == nil {
		c.due = time.NewTimer(checkpointEvery)
	}
	if end.seq-c.signed >= checkpointLines {
		c.sign(end)
	}
}

func (c *checkpointer) timer() <-chan time.Time {
	if c == nil || c.due == nil {
		return nil // never
	}
	return c.due.C
}

// sign writes a checkpoint of end, unless the last one is of it.
func (c *checkpointer) sign(end chainEnd) {
	if c.due != nil {
		c.due.Stop()
		c.due = nil
	}
	if end.seq == 0 || end.seq == c.signed {
		return
	}
	line, err := json.Marshal(Checkpoint{
		Schema: checkpointSchema, N: c.n + 1, Seq: end.seq, Hash: end.hash,
		Time: time.Now().UTC().Truncate(time.Microsecond), KeyID: c.keyID, Prev: c.prev,
	})
	if err == nil {
		line = line[:bytes.Index(line, []byte(signatureMark))]
		signature := ed25519.Sign(c.key, line)
		line = append(line, signatureMark...)
		line = base64.StdEncoding.AppendEncode(line, signature)
		line = append(line, lineEnd...)
		err = c.write(line)
	}
	if err != nil {
		if !c.bad {
			c.logger.Error("audit: sign a checkpoint", "error", err)
		}
		c.bad = true
		c.due = time.NewTimer(checkpointEvery)
		return
	}
	c.bad = false
	c.n, c.prev, c.signed = c.n+1, lineHash(line[:len(line)-1]), end.seq
	c.size += int64(len(line))
}

func (c *checkpointer) write(line []byte) error {
	// Recreated where somebody removed it: verification will miss the earlier ones.
	if named, err := os.Lstat(c.path); err != nil || c.f == nil || !sameFile(c.f, named) {
		f, err := os.OpenFile(c.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|noFollow, 0o640)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err == nil && !info.Mode().IsRegular() {
			err = errNoFile // a pipe would stop the writer once it is full
		}
		if err != nil {
			f.Close()
			return err
		}
		if c.f != nil {
			c.f.Close()
		}
		c.f, c.size = f, info.Size()
	}
	n, err := c.f.Write(line)
	if err != nil && n > 0 {
		err = errors.Join(err, c.f.Truncate(c.size))
	}
	return err
}

func sameFile(f *os.File, named os.FileInfo) bool {
	held, err := f.Stat()
	return err == nil && os.SameFile(held, named)
}

func (c *checkpointer) close() error {
	if c == nil || c.f == nil {
		return nil
	}
	return errors.Join(c.f.Sync(), c.f.Close())
}

// keyID tells keys apart: the first half of the public key's hash, in hex.
func keyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:16])
}

// readSigningKey reads an Ed25519 private key: PEM (PKCS 8, what openssl genpkey writes) or its seed in base64.
func readSigningKey(path string) (ed25519.PrivateKey, error) {
	raw, err := readKeyFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the audit log's signing key: %w", err)
	}
	if block, _ := pem.Decode(raw); block != nil {
		if block.Type != "PRIVATE KEY" {
			return nil, fmt.Errorf("signing key %s is a %s: make a private one with `openssl genpkey -algorithm ed25519`", path, block.Type)
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("signing key %s: %w", path, err)
		}
		if key, ok := key.(ed25519.PrivateKey); ok {
			return key, nil
		}
		return nil, fmt.Errorf("signing key %s is not an Ed25519 key: make one with `openssl genpkey -algorithm ed25519`", path)
	}
	seed, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("signing key %s is neither PEM nor 32 bytes in base64: make one with `openssl genpkey -algorithm ed25519`", path)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// ReadPublicKey reads the key that checkpoints are verified with: PEM (what openssl pkey -pubout writes; a
// private key will do), or the 32 bytes of a public key in base64.
func ReadPublicKey(path string) (ed25519.PublicKey, error) {
	raw, err := readKeyFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the public key: %w", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(raw)))
		if err != nil || len(key) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("public key %s is neither PEM nor 32 bytes in base64", path)
		}
		return key, nil
	}
	if block.Type == "PRIVATE KEY" {
		key, err := readSigningKey(path)
		if err != nil {
			return nil, err
		}
		return key.Public().(ed25519.PublicKey), nil
	}
	key, _ := x509.ParsePKIXPublicKey(block.Bytes)
	if key, ok := key.(ed25519.PublicKey); ok {
		return key, nil
	}
	return nil, fmt.Errorf("%s is not an Ed25519 public key: `openssl pkey -in audit.key -pubout` writes the one of signing_key_file", path)
}

func readKeyFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
}
