// Package s3wire is S3 as bytes: which operation a request is, what it needs permission for, and how it is
// written again for a backend.
//
// Nothing is forwarded that was not understood. A request is read once into an Operation from a closed table;
// everything that policy judges, audit records and the backend receives is derived from that Operation.
//
// table.go is what there is; parse.go finds in it what a request is, from its address (address.go), its query
// (query.go), its headers (header.go) and how its body comes (frame.go). access.go says what the operation needs, and
// url.go writes it again. Bodies are payload.go's, but for those that are read: delete.go and inspect.go.
package s3wire
