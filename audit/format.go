package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// appendCloudEvent wraps a line into a CloudEvent 1.0 (JSON). Its id is the event's.
func appendCloudEvent(b []byte, ev *Event, line []byte, source string) ([]byte, error) {
	b = append(b, `{"specversion":"1.0","type":"sluice.audit.request","id":`...)
	b = appendString(b, ev.ID)
	b = append(b, `,"source":`...)
	b = appendString(b, "/sluice/"+source)
	b = append(b, `,"time":"`...)
	b = appendTime(b, ev.Time)
	b = append(b, '"')
	if ev.Bucket != "" {
		b = append(b, `,"subject":`...)
		b = appendLimited(b, strings.TrimSuffix(ev.Bucket+"/"+ev.Key, "/"), 2*maxField)
	}
	// The sequence extension: sorted as text it is in order.
	b = append(b, `,"sequence":"`...)
	b = fmt.Appendf(b, "%020d", ev.Seq)
	b = append(b, `","datacontenttype":"application/json","data":`...)
	b = append(b, line...)
	return append(b, '}'), nil
}

// The OCSF version that events are written for. They also hold to the versions before it that demand the cloud
// object of every API Activity.
const ocsfVersion = "1.6.0"

type ocsfEvent struct {
	ActivityID   int            `json:"activity_id"`
	ActivityName string         `json:"activity_name"`
	CategoryUID  int            `json:"category_uid"`
	CategoryName string         `json:"category_name"`
	ClassUID     int            `json:"class_uid"`
	ClassName    string         `json:"class_name"`
	TypeUID      int            `json:"type_uid"`
	TypeName     string         `json:"type_name"`
	SeverityID   int            `json:"severity_id"`
	Severity     string         `json:"severity"`
	StatusID     int            `json:"status_id"`
	Status       string         `json:"status"`
	StatusCode   string         `json:"status_code,omitempty"`
	StatusDetail string         `json:"status_detail,omitempty"`
	Message      string         `json:"message"`
	Time         int64          `json:"time"`
	StartTime    int64          `json:"start_time"`
	EndTime      int64          `json:"end_time"`
	Duration     int64          `json:"duration"`
	Metadata     ocsfMetadata   `json:"metadata"`
	Actor        ocsfActor      `json:"actor"`
	API          ocsfAPI        `json:"api"`
	SrcEndpoint  ocsfEndpoint   `json:"src_endpoint"`
	DstEndpoint  *ocsfEndpoint  `json:"dst_endpoint,omitempty"`
	HTTPRequest  *ocsfRequest   `json:"http_request,omitempty"`
	HTTPResponse *ocsfResponse  `json:"http_response,omitempty"`
	Resources    []ocsfResource `json:"resources,omitempty"`
	Cloud        ocsfCloud      `json:"cloud"`
	Unmapped     map[string]any `json:"unmapped"`
}

type ocsfMetadata struct {
	Version        string      `json:"version"`
	Profiles       []string    `json:"profiles"`
	Product        ocsfProduct `json:"product"`
	UID            string      `json:"uid"`
	Sequence       uint64      `json:"sequence"`
	LogName        string      `json:"log_name"`
	LogVersion     string      `json:"log_version"`
	OriginalTime   string      `json:"original_time"`
	CorrelationUID string      `json:"correlation_uid,omitempty"`
}

type ocsfProduct struct {
	Name       string `json:"name"`
	VendorName string `json:"vendor_name"`
}

type ocsfNamed struct {
	Name string `json:"name,omitempty"`
	UID  string `json:"uid,omitempty"`
}

type ocsfActor struct {
	User           ocsfUser            `json:"user"`
	Session        *ocsfSession        `json:"session,omitempty"`
	IDP            *ocsfNamed          `json:"idp,omitempty"`
	Authorizations []ocsfAuthorization `json:"authorizations,omitempty"`
}

type ocsfUser struct {
	Name   string      `json:"name"`
	UID    string      `json:"uid,omitempty"`
	TypeID int         `json:"type_id"`
	Type   string      `json:"type"`
	Email  string      `json:"email_addr,omitempty"`
	Groups []ocsfNamed `json:"groups,omitempty"`
}

type ocsfSession struct {
	UID    string `json:"uid"`
	Issuer string `json:"issuer,omitempty"`
}

type ocsfAuthorization struct {
	Decision string    `json:"decision"`
	Policy   ocsfNamed `json:"policy"`
}

type ocsfAPI struct {
	Operation string     `json:"operation"`
	Service   ocsfNamed  `json:"service"`
	Request   ocsfNamed  `json:"request"`
	Response  ocsfResult `json:"response"`
}

type ocsfResult struct {
	Code    int    `json:"code"`
	Error   string `json:"error,omitempty"`
	Message string `json:"error_message,omitempty"`
}

type ocsfEndpoint struct {
	IP       string `json:"ip,omitempty"`
	Hostname string `json:"hostname,omitempty"`
	Name     string `json:"name,omitempty"`
}

type ocsfRequest struct {
	UID       string `json:"uid"`
	UserAgent string `json:"user_agent,omitempty"`
}

type ocsfResponse struct {
	Code int `json:"code"`
}

type ocsfResource struct {
	UID     string `json:"uid"`
	Name    string `json:"name"`
	Type    string `json:"type"`
	Version string `json:"version,omitempty"`
}

type ocsfCloud struct {
	Provider string `json:"provider"`
}

// appendOCSF writes an event as OCSF API Activity.
func appendOCSF(b []byte, ev *Event) ([]byte, error) {
	const class, className = 6003, "API Activity"
	activity, name := ocsfActivity(ev.Operation)
	start := ev.Time.UnixMilli()
	o := ocsfEvent{
		ActivityID: activity, ActivityName: name,
		CategoryUID: 6, CategoryName: "Application Activity",
		ClassUID: class, ClassName: className,
		TypeUID: class*100 + activity, TypeName: className + ": " + name,
		SeverityID: 1, Severity: "Informational",
		StatusID: 1, Status: "Success",
		Message: fmt.Sprintf("%s %s: %s", or(ev.Operation, "request"), ev.where(), ev.Outcome),
		// The event is of when it ended, as a log is.
		Time: start + int64(ev.DurationMS), StartTime: start, EndTime: start + int64(ev.DurationMS), Duration: int64(ev.DurationMS),
		Metadata: ocsfMetadata{
			Version: ocsfVersion, Profiles: []string{"cloud"}, Product: ocsfProduct{"Sluice", "Sluice"}, UID: ev.ID, Sequence: ev.Seq,
			LogName: "sluice.audit", LogVersion: "1", OriginalTime: string(appendTime(nil, ev.Time)), CorrelationUID: ev.TraceID,
		},
		Actor: ocsfActor{User: ocsfUser{Name: or(or(ev.Identity.Attributes.User, ev.Identity.Subject), "anonymous"), UID: ev.Identity.Subject, TypeID: 1, Type: "User"}},
		API: ocsfAPI{
			Operation: or(ev.Operation, "unknown"), Service: ocsfNamed{Name: "s3"}, Request: ocsfNamed{UID: ev.ID},
			Response: ocsfResult{Code: ev.Status, Message: ev.Error},
		},
		SrcEndpoint: ocsfEndpoint{IP: ev.SourceIP},
		Cloud:       ocsfCloud{or(ev.Backend.Name, "unknown")},
		Unmapped: map[string]any{
			"outcome": ev.Outcome, "bytes_in": ev.BytesIn, "bytes_out": ev.BytesOut, "method": ev.Identity.Method, "attributes": ev.Identity.Attributes,
			"claims": ev.Identity.Claims, "accesses": ev.Accesses, "role": ev.Decision.Role, "shadow": ev.Decision.Shadow, "backend": ev.Backend, "prev": ev.Prev,
		},
	}
	switch ev.Outcome {
	case Completed:
	case Refused, Aborted, Revoked:
		o.SeverityID, o.Severity, o.StatusID, o.Status = 2, "Low", 2, "Failure"
	default:
		o.SeverityID, o.Severity, o.StatusID, o.Status = 3, "Medium", 2, "Failure"
	}
	if ev.Status != 0 {
		o.StatusCode = strconv.Itoa(ev.Status)
		o.HTTPResponse = &ocsfResponse{ev.Status}
	}
	o.StatusDetail = or(strings.Join(ev.Decision.Reasons, "; "), ev.Error)
	if ev.SourceIP == "" {
		o.SrcEndpoint.Name = "unknown"
	}
	if ev.Host != "" {
		o.DstEndpoint = &ocsfEndpoint{Hostname: ev.Host}
	}
	if ev.UserAgent != "" {
		o.HTTPRequest = &ocsfRequest{ev.ID, ev.UserAgent}
	}
	id := &ev.Identity
	if id.Subject == "" {
		o.Actor.User.TypeID, o.Actor.User.Type = 0, "Unknown"
	}
	if strings.Contains(id.Attributes.User, "@") {
		o.Actor.User.Email = id.Attributes.User
	}
	for _, g := range id.Attributes.Groups {
		o.Actor.User.Groups = append(o.Actor.User.Groups, ocsfNamed{Name: g})
	}
	if id.Session != "" {
		o.Actor.Session = &ocsfSession{id.Session, id.Issuer}
	}
	if id.Issuer != "" {
		o.Actor.IDP = &ocsfNamed{Name: id.Issuer}
	}
	for _, a := range ev.Accesses {
		decision := "deny"
		if a.Allow {
			decision = "allow"
		}
		o.Actor.Authorizations = append(o.Actor.Authorizations, ocsfAuthorization{decision, ocsfNamed{Name: a.Action, UID: ev.Decision.PolicyRevision}})
		r := ocsfResource{UID: "arn:aws:s3:::" + a.Bucket, Name: a.Bucket, Type: "bucket", Version: a.VersionID}
		if a.Key != "" {
			r.UID, r.Name, r.Type = r.UID+"/"+a.Key, a.Bucket+"/"+a.Key, "object"
		}
		o.Resources = append(o.Resources, r)
	}
	buf := bytes.NewBuffer(b)
	e := json.NewEncoder(buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(&o); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// ocsfActivity is what an operation does, in OCSF's words.
func ocsfActivity(operation string) (id int, name string) {
	starts := func(prefixes ...string) bool {
		for _, p := range prefixes {
			if strings.HasPrefix(operation, p) {
				return true
			}
		}
		return false
	}
	switch {
	case operation == "":
		return 0, "Unknown"
	case starts("Get", "Head", "List", "Select"):
		return 2, "Read"
	case starts("Delete", "Abort"):
		return 4, "Delete"
	case operation == "PutObject", starts("Create", "Copy", "UploadPart", "CompleteMultipart"):
		return 1, "Create"
	case starts("Put", "Update", "Rename", "Restore", "Write"):
		return 3, "Update"
	}
	return 99, operation
}
