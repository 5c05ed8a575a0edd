// Package s3wire is S3 as bytes: which operation a request is, what it needs permission for, and how it is
// written again for a backend.
//
// Nothing is forwarded that was not understood. A request is read once into an Operation from a closed table;
// everything that policy judges, audit records and the backend receives is derived from that Operation.
package s3wire
