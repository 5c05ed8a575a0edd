package identity

type tokenCache struct{}

func newTokenCache() *tokenCache { return &tokenCache{} }
