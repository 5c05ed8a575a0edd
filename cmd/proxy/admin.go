package main

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy/identity"
)

// adminHandler serves health, metrics and what changes things.
func (s *server) adminHandler(c Admin) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", s.telemetry.scrape())
	guarded := func(pattern string, h http.HandlerFunc) { mux.Handle(pattern, guard(c.TokenFile, h)) }
	guarded("POST /-/reload", s.reloadPolicy)
	guarded("POST /revocations", s.addRevocation)
	guarded("GET /revocations", s.listRevocations)
	guarded("DELETE /revocations/{id}", s.deleteRevocation)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusNotFound
		if slices.Contains([]string{"/healthz", "/readyz", "/metrics", "/-/reload", "/revocations"}, r.URL.Path) {
			status = http.StatusMethodNotAllowed
		}
		writeJSON(w, status, map[string]string{
			"error": "there is no " + r.Method + " " + r.URL.Path + " here: there are GET /healthz, /readyz, /metrics and /revocations, POST /revocations and /-/reload, DELETE /revocations/{id}"})
	})
	return mux
}

// guard asks for the admin token. The file is read at each request, so that it can be changed in place.
func guard(file string, next http.Handler) http.Handler {
	if file == "" {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		want, err := os.ReadFile(file)
		if err != nil {
			writeJSON(w, http.StatusInternalServerError, map[string]string{"error": "the admin token cannot be read"})
			return
		}
		token := strings.TrimSpace(string(want))
		got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || token == "" || subtle.ConstantTimeCompare([]byte(got), []byte(token)) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			writeJSON(w, http.StatusUnauthorized, map[string]string{"error": "send the admin token: Authorization: Bearer <the content of admin.token_file>"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// component is one part's state in /readyz.
type component struct {
	OK       bool   `json:"ok"`
	Error    string `json:"error,omitempty"`
	Revision string `json:"revision,omitempty"`
	Age      string `json:"age,omitempty"`     // since it was loaded
	Checked  string `json:"checked,omitempty"` // since its source was last seen to have no other
}

// policyComponent is ready whatever Err says: the last good policy is in force, requests are served, and the operator
// is told.
func policyComponent(s policy.Status) component {
	c := component{OK: true, Revision: s.Revision}
	if s.Err != nil {
		c.Error = s.Err.Error()
	}
	since := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return time.Since(t).Round(time.Second).String()
	}
	c.Age, c.Checked = since(s.Loaded), since(s.Checked)
	return c
}

// ready tells whether requests would be served, and what stands in their way.
func (s *server) ready(w http.ResponseWriter, r *http.Request) {
	parts := s.current.Load()
	body := map[string]component{}

	status := parts.policy.Status()
	body["policy"] = policyComponent(status)
	if status.Shadow != nil {
		body["shadow policy"] = policyComponent(*status.Shadow)
	}

	// One issuer that is down is no reason to turn the others' users away: it is told, and the rest served.
	auth := parts.auth.Status()
	for _, issuer := range auth.Issuers {
		body["issuer "+issuer.Issuer] = component{OK: issuer.Ready || auth.Ready(), Error: issuer.Error}
	}
	body["revocations"] = component{OK: auth.Revocations.Ready, Error: auth.Revocations.Error}
	body["audit"] = component{OK: true}
	if err := s.keep.audit.Health(); err != nil {
		// Told to serve what cannot be recorded, the proxy is ready all the same.
		body["audit"] = component{OK: parts.config.Audit.OnFailure == "continue", Error: err.Error()}
	}
	for _, far := range s.keep.audit.Stats().Ship {
		// Nothing is lost while it waits in the log: no reason to turn requests away.
		c := component{OK: true}
		if far.Err != nil {
			c.Error = far.Err.Error()
		}
		body["audit.ship "+far.Name] = c
	}
	if s.draining.Load() {
		body["listener"] = component{Error: "draining"}
	}

	answer := http.StatusOK
	for _, c := range body {
		if !c.OK {
			answer = http.StatusServiceUnavailable
		}
	}
	writeJSON(w, answer, map[string]any{"ready": answer == http.StatusOK, "components": body})
}

// reloadPolicy loads the policy now.
func (s *server) reloadPolicy(w http.ResponseWriter, r *http.Request) {
	engine := s.current.Load().policy
	if err := engine.Reload(r.Context()); err != nil {
		writeJSON(w, http.StatusUnprocessableEntity, map[string]string{"error": err.Error(), "revision": engine.Status().Revision})
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"revision": engine.Status().Revision})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false) // people read it in a terminal
	_ = encoder.Encode(body)
}

func sinceSeconds(t time.Time) float64 { return time.Since(t).Seconds() }

// addRevocation takes {"session"|"subject"|"token_id": …, "issuer": …, "until": …}. The issuer may be left out where
// only one is configured.
func (s *server) addRevocation(w http.ResponseWriter, r *http.Request) {
	var revocation identity.Revocation
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&revocation)
	if _, more := decoder.Token(); err == nil && more != io.EOF {
		err = errors.New("there is more than one")
	}
	if _, ok := errors.AsType[*time.ParseError](err); ok {
		err = errors.New("until has to be a time such as 2026-11-26T06:30:00Z")
	}
	if err != nil {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": "the body is not a revocation: " + err.Error()})
		return
	}
	parts := s.current.Load()
	if revocation.Issuer == "" && len(parts.config.Issuers) == 1 {
		revocation.Issuer = parts.config.Issuers[0].Issuer
	}
	added, err := parts.auth.Revocations().Add(r.Context(), revocation)
	switch {
	case errors.Is(err, identity.ErrBadRevocation):
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
	case errors.Is(err, identity.ErrNotShared):
		s.log.Error("revocation is in force here only", slog.String("revocation", added.ID), slog.Any("error", err))
		writeJSON(w, http.StatusAccepted, added)
	case err != nil:
		s.log.Error("revocation not kept", slog.String("revocation", added.ID), slog.Any("error", err))
		writeJSON(w, http.StatusInternalServerError, map[string]string{"error": err.Error()})
	default:
		s.log.Info("revoked", slog.String("revocation", added.ID), slog.String("issuer", added.Issuer), slog.Time("until", added.Until))
		writeJSON(w, http.StatusCreated, added)
	}
}

func (s *server) listRevocations(w http.ResponseWriter, r *http.Request) {
	list := s.current.Load().auth.Revocations().List()
	if list == nil {
		list = []identity.Revocation{}
	}
	writeJSON(w, http.StatusOK, list)
}

func (s *server) deleteRevocation(w http.ResponseWriter, r *http.Request) {
	err := s.current.Load().auth.Revocations().Delete(r.Context(), r.PathValue("id"))
	switch {
	case errors.Is(err, identity.ErrNoRevocation):
		writeJSON(w, http.StatusNotFound, map[string]string{"error": err.Error()})
	case err != nil && !errors.Is(err, identity.ErrNotShared):
		writeJSON(w, http.StatusInternalServerError, map[string]string{"error": err.Error()})
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}
