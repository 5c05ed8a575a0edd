package s3wire

import "slices"

// Unsupported are the operations of S3 that answer 501 NotImplemented, sorted.
func Unsupported() []string {
	var names []string
	for i := range table {
		if table[i].unsupported != "" {
			names = append(names, table[i].name)
		}
	}
	slices.Sort(names)
	return names
}
