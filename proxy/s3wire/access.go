package s3wire

import (
	"slices"
	"strings"
)

// Access is one thing an operation needs: an IAM action on a bucket, and on a key where it has one.
type Access struct {
	Action            string // "s3:GetObject"
	Bucket, Key       string
	VersionID         string
	Prefix, Delimiter string
}

// Accesses is what the operation needs, never empty: what it reads of another object first, then what it does to
// its own, then what its headers ask for besides.
//
// The keys of DeleteObjects come with its body: DeleteAccesses tells what they need, and what is returned here, on
// the bucket and no key, only keeps a caller that forgets it from needing nothing.
func (op *Operation) Accesses() []Access { return op.AppendAccesses(nil) }

// AppendAccesses is Accesses for who has room for them. accesses MUST be empty.
func (op *Operation) AppendAccesses(accesses []Access) []Access {
	e := op.row()
	if e == nil {
		return append(accesses, Access{Action: "s3:*", Bucket: op.Bucket, Key: op.Key, VersionID: op.VersionID}) // not of Parse's making
	}
	actions := e.actions
	if op.VersionID != "" {
		actions = e.versionedActions
	}
	room := len(actions)
	if op.Source != nil || len(op.headers) > 0 {
		room += 3
	}
	accesses = slices.Grow(accesses, room)
	if s := op.Source; s != nil {
		read := Access{Action: "s3:GetObject", Bucket: s.Bucket, Key: s.Key, VersionID: s.VersionID}
		if s.VersionID != "" {
			read.Action = "s3:GetObjectVersion"
		}
		accesses = append(accesses, read)
		if e.source == renameSource {
			read.Action = "s3:DeleteObject"
			accesses = append(accesses, read)
		}
		// By default a copy takes tags and annotations along where it may, so that only who asks for them needs them; S3
		// itself holds the role to what the source turns out to have.
		if directive, _ := op.header(headerAnnotationDirective); strings.EqualFold(directive, "COPY") {
			read.Action = "s3:GetObjectAnnotation"
			if s.VersionID != "" {
				read.Action = "s3:GetObjectVersionAnnotation"
			}
			accesses = append(accesses, read)
		}
	}

	own := Access{Bucket: op.Bucket, Key: op.Key, VersionID: op.VersionID, Prefix: op.Prefix, Delimiter: op.Delimiter}
	start := len(accesses)
	for _, action := range actions {
		own.Action = action
		accesses = append(accesses, own)
	}
	for i := range op.headers {
		for _, extra := range e.extras {
			if extra.id != op.headers[i].id {
				continue
			}
			for _, action := range extra.actions {
				own.Action = action
				accesses = appendOnce(accesses, start, own)
			}
		}
	}
	if directive, _ := op.header(headerAnnotationDirective); strings.EqualFold(directive, "COPY") {
		own.Action = "s3:PutObjectAnnotation"
		accesses = appendOnce(accesses, start, own)
	}
	return accesses
}

func appendOnce(accesses []Access, start int, a Access) []Access {
	for i := range accesses[start:] {
		if accesses[start+i].Action == a.Action {
			return accesses
		}
	}
	return append(accesses, a)
}

// DeleteAccesses is what a DeleteObjects needs: first d.Accesses, one for each entry of the body, and then, where
// the request bypasses governance retention, that for each entry again. Entry i is allowed if access i is and, where
// there are twice as many, access len(d.Objects)+i is.
func (op *Operation) DeleteAccesses(d *Delete) []Access {
	accesses := d.Accesses(op.Bucket)
	if _, bypass := op.header(headerBypass); bypass {
		for _, a := range accesses[:len(accesses):len(accesses)] {
			a.Action = "s3:BypassGovernanceRetention"
			accesses = append(accesses, a)
		}
	}
	return accesses
}
