package server

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"

	"vmand/openapi"
	"vmand/vm"
)

// CloudInits keeps the cloud-init data of VMs.
type CloudInits interface {
	Get(ctx context.Context, vmID string) (vm.CloudInitView, error)
	Set(ctx context.Context, vmID string, c vm.CloudInit, reprovision bool, match vm.Match) (vm.CloudInitView, error)
}

// GetCloudInit implements [openapi.StrictServerInterface].
func (s *Server) GetCloudInit(ctx context.Context, r openapi.GetCloudInitRequestObject) (openapi.Response, error) {
	view, err := s.CloudInits.Get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return cloudInitAnswer(ctx, r.ID, &view)
}

// SetCloudInit implements [openapi.StrictServerInterface].
func (s *Server) SetCloudInit(ctx context.Context, r openapi.SetCloudInitRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	b := r.Body
	c, err := newCloudInit(&openapi.CloudInit{
		Hostname:          b.Hostname,
		SSHAuthorizedKeys: b.SSHAuthorizedKeys,
		Users:             b.Users,
		PasswordHash:      b.PasswordHash,
		Format:            b.Format,
		UserData:          b.UserData,
		UserDataBase64:    b.UserDataBase64,
		VendorData:        b.VendorData,
		NetworkConfig:     b.NetworkConfig,
	}, "")
	if err != nil {
		return nil, err
	}
	view, err := s.CloudInits.Set(ctx, r.ID, *c, value(b.Reprovision), match)
	if err != nil {
		return nil, err
	}
	return cloudInitAnswer(ctx, r.ID, &view)
}

// newCloudInit returns the cloud-init data of a request. It returns nil if b is nil. prefix is
// the JSON pointer of b.
func newCloudInit(b *openapi.CloudInit, prefix string) (*vm.CloudInit, error) {
	if b == nil {
		return nil, nil
	}
	c := &vm.CloudInit{
		Hostname:          value(b.Hostname),
		SSHAuthorizedKeys: trimKeys(value(b.SSHAuthorizedKeys)),
		PasswordHash:      value(b.PasswordHash),
		Format:            vm.DataFormat(value(b.Format)),
		UserData:          value(b.UserData),
		UserDataBase64:    value(b.UserDataBase64),
		VendorData:        value(b.VendorData),
		NetworkConfig:     value(b.NetworkConfig),
	}
	for _, u := range value(b.Users) {
		c.Users = append(c.Users, vm.CloudUser{
			Name:              u.Name,
			SSHAuthorizedKeys: trimKeys(value(u.SSHAuthorizedKeys)),
			PasswordHash:      value(u.PasswordHash),
			Sudo:              value(u.Sudo),
			Groups:            value(u.Groups),
			Shell:             value(u.Shell),
		})
	}
	return c, c.Normalize(prefix)
}

// trimKeys returns keys without the newline that ends a .pub file.
func trimKeys(keys []string) []string {
	trimmed := make([]string, len(keys))
	for i, key := range keys {
		trimmed[i] = strings.TrimRight(key, "\r\n")
	}
	return trimmed
}

// cloudInitAnswer answers with the cloud-init data of a VM, redacted for callers whose
// role does not allow them to change the VM. The guest's report has no revision, so the
// entity tag contains a hash of the body.
func cloudInitAnswer(ctx context.Context, vmID string, view *vm.CloudInitView) (answer, error) {
	body := apiCloudInit(vmID, view)
	if !vm.CallerOf(ctx).Role.May(vm.RoleOperator) {
		redact(body)
	}
	b, err := json.Marshal(body)
	if err != nil {
		return answer{}, err
	}
	hash := sha256.Sum256(b)
	etag := strings.TrimSuffix(etagOf(view.Version), `"`) + "." + hex.EncodeToString(hash[:8]) + `"`
	return answer{status: http.StatusOK, body: body, etag: etag}, nil
}

// hiddenHash replaces the hash of a password in a redacted answer.
const hiddenHash = "***"

// redact removes from b everything that only callers that may change the VM can read.
func redact(b *openapi.CloudInitDetails) {
	b.Redacted = true
	b.UserData, b.UserDataBase64, b.VendorData, b.NetworkConfig = nil, nil, nil, nil
	b.Files = openapi.CloudInitFiles{}
	b.PasswordHash = hideHash(b.PasswordHash)
	for i := range b.Users {
		b.Users[i].PasswordHash = hideHash(b.Users[i].PasswordHash)
	}
}

func hideHash(hash *string) *string {
	if hash == nil {
		return nil
	}
	hidden := hiddenHash
	return &hidden
}

func apiCloudInit(vmID string, view *vm.CloudInitView) *openapi.CloudInitDetails {
	c := &view.Spec
	meta, user := view.Files["meta-data"], view.Files["user-data"]
	vendor, network := view.Files["vendor-data"], view.Files["network-config"]
	userText := user
	if c.UserDataBase64 != "" {
		userText = ""
	}
	out := &openapi.CloudInitDetails{
		InstanceID:        view.InstanceID,
		Attached:          view.Attached,
		Hostname:          cmp.Or(c.Hostname, vmID),
		SSHAuthorizedKeys: append([]string{}, c.SSHAuthorizedKeys...),
		Users:             make([]openapi.CloudInitUserDetails, len(c.Users)),
		PasswordHash:      optional(&c.PasswordHash),
		Format:            openapi.UserDataFormat(cmp.Or(c.Format, vm.DataCloudInit)),
		UserData:          optional(&c.UserData),
		UserDataBase64:    optional(&c.UserDataBase64),
		VendorData:        optional(&c.VendorData),
		NetworkConfig:     optional(&c.NetworkConfig),
		Files: openapi.CloudInitFiles{
			MetaData:      optional(&meta),
			UserData:      optional(&userText),
			VendorData:    optional(&vendor),
			NetworkConfig: optional(&network),
		},
		Summaries: openapi.CloudInitSummaries{
			UserData:      apiSummary(c.Data()),
			VendorData:    apiSummary(c.VendorData),
			NetworkConfig: apiSummary(c.NetworkConfig),
			Files: openapi.CloudInitFileSummaries{
				MetaData:      apiSummary(meta),
				UserData:      apiSummary(user),
				VendorData:    apiSummary(vendor),
				NetworkConfig: apiSummary(network),
			},
		},
	}
	for i := range c.Users {
		u := &c.Users[i]
		out.Users[i] = openapi.CloudInitUserDetails{
			Name:              u.Name,
			SSHAuthorizedKeys: append([]string{}, u.SSHAuthorizedKeys...),
			PasswordHash:      optional(&u.PasswordHash),
			Sudo:              optional(&u.Sudo),
			Groups:            append([]string{}, u.Groups...),
			Shell:             optional(&u.Shell),
		}
	}
	if g := view.Guest; g != nil {
		out.Status = &openapi.CloudInitStatus{
			Status: g.Status,
			Detail: optional(&g.Detail),
			Errors: append([]string{}, g.Errors...),
		}
	}
	return out
}

// apiSummary returns the summary of a piece of cloud-init data. It returns nil if data is
// empty.
func apiSummary(data string) *openapi.CloudInitSummary {
	if data == "" {
		return nil
	}
	s := vm.SummarizeData(data)
	return &openapi.CloudInitSummary{
		SizeBytes: s.SizeBytes,
		SHA256:    s.SHA256,
		Parts:     append([]string{}, s.Parts...),
	}
}
