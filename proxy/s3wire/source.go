package s3wire

import "strings"

// Source is the object that a copy or a rename reads.
type Source struct{ Bucket, Key, VersionID string }

// parseSource reads x-amz-copy-source: [/]bucket/key[?versionId=id], escaped like a path. It is decoded once, here,
// and written anew by String, so that no server behind can read another object in it.
func parseSource(h *headerName, value string) (*Source, error) {
	path, query, versioned := strings.Cut(strings.TrimPrefix(value, "/"), "?")
	if strings.IndexByte(value, '+') >= 0 {
		// S3 reads a space, most others a plus.
		return nil, errorf("InvalidArgument", "header %s has a bare +: write %%2B for a plus and %%20 for a space", h.lower)
	}
	if strings.HasPrefix(path, "arn:") {
		return nil, errorf("NotImplemented", "header %s is an ARN: name the bucket and key", h.lower)
	}
	s := new(Source)
	var err error
	if rawBucket, rawKey, found := strings.Cut(path, "/"); found {
		if s.Bucket, err = unescape(rawBucket, "header "+h.lower); err != nil {
			return nil, err
		}
		if s.Key, err = unescape(rawKey, "header "+h.lower); err != nil {
			return nil, err
		}
	} else if err = s.readWhole(h, path); err != nil {
		return nil, err
	}
	if s.Bucket == "" || s.Key == "" {
		return nil, errorf("InvalidArgument", "header %s must be bucket/key, or bucket/key?versionId=id", h.lower)
	}
	if err = checkBucket(s.Bucket); err != nil {
		return nil, err
	}
	if len(s.Key) > maxKey {
		return nil, errorf("KeyTooLongError", "the key in header %s is longer than %d bytes", h.lower, maxKey)
	}
	if versioned {
		id, ok := strings.CutPrefix(query, "versionId=")
		if !ok || id == "" || strings.ContainsAny(id, "?&=;/") {
			return nil, errorf("InvalidArgument", "header %s has more than ?versionId=id after the key: write %%3F for a question mark in a key", h.lower)
		}
		if s.VersionID, err = unescape(id, "header "+h.lower); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// readWhole reads a source that was escaped as a whole, its slashes too, as users of the SDK for JavaScript do by
// encodeURIComponent and S3 takes it.
func (s *Source) readWhole(h *headerName, path string) error {
	whole, err := unescape(path, "header "+h.lower)
	if err != nil {
		return err
	}
	s.Bucket, s.Key, _ = strings.Cut(strings.TrimPrefix(whole, "/"), "/")
	if strings.Contains(s.Key, "?") { // was it of the key, or did it begin ?versionId=id?
		return errorf("InvalidArgument", "header %s has an escaped ? and no slash that is not: write bucket/key, and escape the key alone", h.lower)
	}
	return nil
}

// String is the source as it is sent.
func (s *Source) String() string {
	b := make([]byte, 0, len(s.Bucket)+len(s.Key)+len(s.VersionID)+24)
	b = append(b, s.Bucket...)
	b = append(b, '/')
	b = appendPath(b, s.Key)
	if s.VersionID != "" {
		b = append(b, "?versionId="...)
		b = appendEscaped(b, s.VersionID)
	}
	return string(b)
}
