package s3wire

// HostBucket is the bucket that a Host header names, "" where the path does. It fails where the host is none of
// the proxy's.
func (a Addressing) HostBucket(host string) (string, error) { return a.bucketInHost(host) }
