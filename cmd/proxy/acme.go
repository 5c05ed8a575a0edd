package main

// ACME is certificates by certmagic.
type ACME struct {
	Email     string `yaml:"email"`
	Directory string `yaml:"directory"` // [Let's Encrypt]
	CAFile    string `yaml:"ca_file"`   // trust for the directory's own certificate
	Storage   string `yaml:"storage"`   // [/var/lib/sluice/acme]
}

func (a *ACME) check(domains []string, report func(path, text string)) {
	if len(domains) == 0 {
		report("tls.acme", "listen.domains is empty: there is no name to get a certificate for")
	}
}
