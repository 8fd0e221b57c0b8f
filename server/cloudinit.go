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

// GetCloudInit implements [openapi.StrictServerInterface].
func (s *Server) GetCloudInit(ctx context.Context, r openapi.GetCloudInitRequestObject) (openapi.Response, error) {
	view, err := s.manager.CloudInit(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return cloudInitAnswer(r.ID, &view)
}

// SetCloudInit implements [openapi.StrictServerInterface].
func (s *Server) SetCloudInit(ctx context.Context, r openapi.SetCloudInitRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	b := r.Body
	c := newCloudInit(&openapi.CloudInit{
		Hostname:          b.Hostname,
		SSHAuthorizedKeys: b.SSHAuthorizedKeys,
		Users:             b.Users,
		PasswordHash:      b.PasswordHash,
		UserData:          b.UserData,
		VendorData:        b.VendorData,
		NetworkConfig:     b.NetworkConfig,
	})
	view, err := s.manager.SetCloudInit(ctx, r.ID, *c, value(b.Reprovision), match)
	if err != nil {
		return nil, err
	}
	return cloudInitAnswer(r.ID, &view)
}

// newCloudInit converts cloud-init data. It returns nil if b is nil.
func newCloudInit(b *openapi.CloudInit) *vm.CloudInit {
	if b == nil {
		return nil
	}
	c := &vm.CloudInit{
		Hostname:          value(b.Hostname),
		SSHAuthorizedKeys: value(b.SSHAuthorizedKeys),
		PasswordHash:      value(b.PasswordHash),
		UserData:          value(b.UserData),
		VendorData:        value(b.VendorData),
		NetworkConfig:     value(b.NetworkConfig),
	}
	for _, u := range value(b.Users) {
		c.Users = append(c.Users, vm.CloudUser{
			Name:              u.Name,
			SSHAuthorizedKeys: value(u.SSHAuthorizedKeys),
			PasswordHash:      value(u.PasswordHash),
			Sudo:              value(u.Sudo),
			Groups:            value(u.Groups),
			Shell:             value(u.Shell),
		})
	}
	return c
}

// cloudInitAnswer returns the answer with the cloud-init data of a VM. The status that
// the guest reports has no revision, so the entity tag contains a hash of the body.
func cloudInitAnswer(vmID string, view *vm.CloudInitView) (answer, error) {
	body := apiCloudInit(vmID, view)
	b, err := json.Marshal(body)
	if err != nil {
		return answer{}, err
	}
	hash := sha256.Sum256(b)
	etag := strings.TrimSuffix(etagOf(view.Version), `"`) + "." + hex.EncodeToString(hash[:8]) + `"`
	return answer{status: http.StatusOK, body: body, etag: etag}, nil
}

func apiCloudInit(vmID string, view *vm.CloudInitView) *openapi.CloudInitDetails {
	c := &view.Spec
	file := func(name string) *string { f := view.Files[name]; return optional(&f) }
	out := &openapi.CloudInitDetails{
		InstanceID:        view.InstanceID,
		Attached:          view.Attached,
		Hostname:          cmp.Or(c.Hostname, vmID),
		SSHAuthorizedKeys: append([]string{}, c.SSHAuthorizedKeys...),
		PasswordHash:      optional(&c.PasswordHash),
		Users:             make([]openapi.CloudInitUserDetails, len(c.Users)),
		Files: openapi.CloudInitFiles{
			MetaData:      file("meta-data"),
			UserData:      file("user-data"),
			VendorData:    file("vendor-data"),
			NetworkConfig: file("network-config"),
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
