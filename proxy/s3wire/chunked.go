package s3wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"hash"
	"io"
	"strconv"
	"strings"
	"sync"
)

// aws-chunked, as AWS documents it under "sigv4-streaming" and "sigv4-streaming-trailers":
//
//	10000;chunk-signature=<64 hex>\r\n      without the extension where chunks are unsigned
//	<65536 bytes>\r\n
//	0;chunk-signature=<64 hex>\r\n
//	x-amz-checksum-crc32c:sOO8/Q==\r\n      where a trailer was declared
//	x-amz-trailer-signature:<64 hex>\r\n    where chunks are signed, too
//	\r\n
//
// The grammar is read to the letter, with one exception: minio-go ends a trailer's line with "\n\r\n".

// minChunk is the size that S3 asks of every chunk but the last. It also bounds what one byte of an object can cost.
const minChunk = 8192

// maxLine is more than the longest line that the grammar allows: a SHA-512 trailer has 110 bytes.
const maxLine = 256

// unframer reads an aws-chunked body strictly. It is a source of the object's bytes.
type unframer struct {
	from    io.Reader
	fromErr error // what from said together with its last bytes
	buf     *frameBuffer
	r, w    int // what of buf is read from the client and not yet used

	signed  bool
	verify  ChunkVerifier
	hash    hash.Hash // of the chunk's data; nil where nothing is verified
	sum     [sha256.Size]byte
	sig     string // of the chunk being read
	trailer string // declared, "" = none

	total int64 // of the object's bytes, not yet announced by a chunk
	chunk int64 // of the chunk, not yet read
	open  bool  // a chunk's CRLF is still to come
	small bool  // that chunk is too small to be followed by another

	checksum hash.Hash // of the object; nil where the backend checks it
	value    string    // of the trailer, once it has been read
}

type frameBuffer [16 << 10]byte

// frameBuffers are given back when a body has ended. One that is broken off is left to the collector, because its
// reader may still be in a Read.
var frameBuffers = sync.Pool{New: func() any { return new(frameBuffer) }}

func newUnframer(body io.Reader, p Payload, verify ChunkVerifier) *unframer {
	u := &unframer{
		from:    body,
		signed:  p.Kind != PayloadUnsignedTrailer,
		trailer: p.Trailer,
		total:   p.Length,
	}
	if body == nil {
		u.from = bytes.NewReader(nil)
	}
	if u.signed && verify != nil {
		u.verify = verify
		u.hash = sha256.New()
	}
	return u
}

func (u *unframer) read(p []byte) (int, error) {
	n, err := u.readChunk(p)
	if u.hash != nil {
		u.hash.Write(p[:n])
	}
	if u.checksum != nil {
		u.checksum.Write(p[:n])
	}
	if err != nil {
		u.release()
	}
	return n, err
}

func (u *unframer) readChunk(p []byte) (int, error) {
	if u.chunk == 0 {
		if err := u.nextChunk(); err != nil {
			return 0, err
		}
		if u.chunk == 0 {
			return 0, errorf("IncompleteBody", "the last chunk came %d bytes before x-amz-decoded-content-length", u.total)
		}
	}
	p = p[:min(int64(len(p)), u.chunk)]
	// What is already here goes first; what is not is read to where it is wanted, unless that is only a little.
	if u.r == u.w && len(p) < len(u.buf)/2 {
		if err := u.fill(); err != nil {
			return 0, err
		}
	}
	if u.r < u.w {
		n := copy(p, u.buf[u.r:u.w])
		u.r += n
		u.chunk -= int64(n)
		return n, nil
	}
	if u.fromErr != nil {
		return 0, u.ended(u.fromErr)
	}
	n, err := readSome(u.from, p)
	u.chunk -= int64(n)
	if n > 0 {
		u.fromErr = err
		return n, nil
	}
	return 0, u.ended(err)
}

// finish reads the last chunk, the trailer and the end.
func (u *unframer) finish() error {
	err := u.readEnd()
	u.release()
	return err
}

func (u *unframer) readEnd() error {
	if err := u.nextChunk(); err != nil {
		return err
	}
	// nextChunk has refused every chunk over the declared length, so this one is the last.
	if u.verify != nil {
		if err := u.verifyChunk(); err != nil {
			return err
		}
	}
	if err := u.readTrailer(); err != nil {
		return err
	}
	if u.r < u.w {
		return errorf("IncompleteBody", "the body goes on after its last chunk")
	}
	if u.fromErr == nil {
		u.fromErr = expectEnd(u.from)
		if u.fromErr == nil {
			return nil
		}
	}
	if u.fromErr != io.EOF {
		return u.fromErr
	}
	return nil
}

// nextChunk ends the chunk that is open, if one is, and reads the line that begins the next.
func (u *unframer) nextChunk() error {
	if u.buf == nil {
		u.buf = frameBuffers.Get().(*frameBuffer)
	}
	if u.open {
		line, err := u.line()
		if err != nil {
			return err
		}
		if len(line) != 0 {
			return errorf("IncompleteBody", "a chunk is longer than its size says")
		}
		u.open = false
		if u.verify != nil {
			if err := u.verifyChunk(); err != nil {
				return err
			}
		}
	}

	line, err := u.line()
	if err != nil {
		return err
	}
	if u.signed {
		const extension = ";chunk-signature="
		i := len(line) - 64
		if i < len(extension) || string(line[i-len(extension):i]) != extension || !hexOnly(line[i:]) {
			return errorf("IncompleteBody", "a chunk must begin with its size in hex and \";chunk-signature=\" with 64 hex digits")
		}
		if u.verify != nil {
			u.sig = string(line[i:])
		}
		line = line[:i-len(extension)]
	}
	if len(line) == 0 || len(line) > 16 || !hexOnly(line) {
		return errorf("IncompleteBody", "a chunk must begin with its size: one to sixteen hex digits")
	}
	size := uint64(0)
	for _, c := range line {
		size = size<<4 | uint64(hexDigit(c))
	}
	if size > uint64(u.total) {
		return errorf("IncompleteBody", "the chunks hold more bytes than x-amz-decoded-content-length says")
	}
	if size > 0 {
		if u.small {
			return errorf("InvalidChunkSizeError", "Only the last chunk is allowed to have a size less than %d bytes", minChunk)
		}
		u.small = size < minChunk
		u.open = true
	}
	u.chunk = int64(size)
	u.total -= u.chunk
	return nil
}

func (u *unframer) verifyChunk() error {
	u.hash.Sum(u.sum[:0])
	u.hash.Reset()
	return u.verify.VerifyChunk(u.sig, u.sum)
}

func (u *unframer) readTrailer() error {
	var signature string
	for {
		line, err := u.trailerLine()
		if err != nil {
			return err
		}
		if len(line) == 0 {
			break
		}
		name, value, ok := bytes.Cut(line, []byte{':'})
		switch {
		case !ok:
			return errorf("MalformedTrailerError", "a trailer must be a name, a colon and a value")
		case u.trailer == "":
			return errorf("MalformedTrailerError", "the body has a trailer that x-amz-trailer does not declare")
		case signature != "":
			return errorf("MalformedTrailerError", "the trailer's signature must come last")
		case u.signed && u.value != "" && strings.EqualFold(string(name), "x-amz-trailer-signature"):
			if len(value) != 64 || !hexOnly(value) {
				return errorf("MalformedTrailerError", "x-amz-trailer-signature must be 64 hex digits")
			}
			signature = string(value)
		case u.value != "":
			return errorf("MalformedTrailerError", "the body has more trailers than the one that x-amz-trailer declares")
		case !strings.EqualFold(string(name), u.trailer):
			return errorf("MalformedTrailerError", "the body's trailer is not the one that x-amz-trailer declares")
		case !isChecksum(string(value), checksumSize(u.trailer)):
			return errorf("InvalidRequest", "Value for %s trailing header is invalid.", u.trailer)
		default:
			u.value = string(value)
		}
	}
	if u.trailer == "" {
		return nil
	}
	if u.value == "" {
		return errorf("MalformedTrailerError", "the trailer that x-amz-trailer declares is missing")
	}
	if u.signed {
		if signature == "" {
			return errorf("MalformedTrailerError", "x-amz-trailer-signature is missing")
		}
		if u.verify != nil {
			lines := append([]byte(u.trailer), ':')
			lines = append(append(lines, u.value...), '\n')
			if err := u.verify.VerifyTrailer(signature, sha256.Sum256(lines)); err != nil {
				return err
			}
		}
	}
	if u.checksum != nil {
		if sum := base64.StdEncoding.EncodeToString(u.checksum.Sum(nil)); sum != u.value {
			return errorf("BadDigest", "The %s you specified did not match the calculated checksum.", strings.ToUpper(strings.TrimPrefix(u.trailer, checksumPrefix)))
		}
	}
	return nil
}

// trailerLine is a line without its end, minio-go's included.
func (u *unframer) trailerLine() ([]byte, error) {
	line, err := u.line()
	if err != nil {
		return nil, err
	}
	if len(line) > 1 {
		line = bytes.TrimSuffix(line, []byte{'\n'})
	}
	if bytes.ContainsAny(line, "\r\n") {
		return nil, errorf("MalformedTrailerError", "lines of a trailer end in CR LF, and have neither of them elsewhere")
	}
	return line, nil
}

// line reads up to CRLF, and yields what is before it until the next call.
func (u *unframer) line() ([]byte, error) {
	for seen := 0; ; {
		have := u.buf[u.r:u.w]
		if i := bytes.Index(have[seen:], []byte("\r\n")); i >= 0 && seen+i <= maxLine {
			u.r += seen + i + 2
			return have[:seen+i], nil
		}
		if len(have) > maxLine {
			return nil, errorf("IncompleteBody", "a line of aws-chunked framing is longer than any that S3 defines")
		}
		seen = max(len(have)-1, 0)
		if err := u.fill(); err != nil {
			return nil, err
		}
	}
}

// fill reads more of the body behind what is there.
func (u *unframer) fill() error {
	if u.r == u.w {
		u.r, u.w = 0, 0
	} else if len(u.buf)-u.w < maxLine {
		u.w = copy(u.buf[:], u.buf[u.r:u.w])
		u.r = 0
	}
	if u.fromErr != nil {
		return u.ended(u.fromErr)
	}
	n, err := readSome(u.from, u.buf[u.w:])
	u.w += n
	if n > 0 {
		u.fromErr = err
		return nil
	}
	return u.ended(err)
}

// ended is what the end of the client's body means in the middle of its framing.
func (u *unframer) ended(err error) error {
	if err == io.EOF {
		return errorf("IncompleteBody", "the body ended before its last chunk did")
	}
	return err
}

func (u *unframer) release() {
	if u.buf != nil {
		frameBuffers.Put(u.buf)
		u.buf = nil
	}
}

func hexOnly(b []byte) bool {
	for _, c := range b {
		if hexDigit(c) == 0xFF {
			return false
		}
	}
	return true
}

func hexDigit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xFF
}

// outChunk is the size of our own chunks: that of the AWS CLI and boto3, which every backend has met.
const outChunk = 1 << 20

// frameLength is the length of an object of length bytes and its trailer in our own framing.
func frameLength(length int64, trailer string) int64 {
	overhead := func(size int64) int64 { return int64(len(strconv.FormatInt(size, 16)) + len("\r\n\r\n")) }
	n := length + length/outChunk*overhead(outChunk)
	if rest := length % outChunk; rest > 0 {
		n += overhead(rest)
	}
	value := base64.StdEncoding.EncodedLen(checksumSize(trailer))
	return n + int64(len("0\r\n")+len(trailer)+len(":")+value+len("\r\n\r\n"))
}

// framer writes what an unframer reads in chunks of our own. Their sizes follow from the declared length alone, so
// nothing waits for a chunk to be complete.
type framer struct {
	in      *unframer
	trailer string
	left    int64  // of the object's bytes
	chunk   int64  // of the chunk
	pending []byte // framing that comes before anything else
	scratch [160]byte
	ended   bool
	err     error
}

func (f *framer) Read(p []byte) (int, error) {
	n, data := 0, false
	for n < len(p) && f.err == nil {
		switch {
		case len(f.pending) > 0:
			c := copy(p[n:], f.pending)
			f.pending = f.pending[c:]
			n += c
		case f.ended:
			f.err = io.EOF
		case data: // what comes next may keep us waiting
			return n, nil
		case f.chunk > 0:
			var m int
			m, f.err = f.in.read(p[n : n+int(min(int64(len(p)-n), f.chunk))])
			n, data = n+m, true
			f.left -= int64(m)
			if f.chunk -= int64(m); f.chunk == 0 {
				f.pending = append(f.scratch[:0], "\r\n"...)
			}
		case f.left > 0:
			f.chunk = min(f.left, outChunk)
			f.pending = append(strconv.AppendInt(f.scratch[:0], f.chunk, 16), "\r\n"...)
		case n > 0:
			return n, nil // so may the end
		default:
			if f.err = f.in.finish(); f.err != nil {
				break
			}
			b := append(f.scratch[:0], "0\r\n"...)
			b = append(append(b, f.trailer...), ':')
			b = append(append(b, f.in.value...), "\r\n\r\n"...)
			f.pending, f.ended = b, true
		}
	}
	if n > 0 {
		return n, nil
	}
	return 0, f.err
}
