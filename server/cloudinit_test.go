package server

import (
	"crypto/sha256"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

const (
	someKey  = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk3bn8+RQwFqY7v3fLqZbFq2HnKk0tQh5mJx8yFq3Zr admin@example"
	someHash = "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/"
)

func TestCloudInitDataIsRedactedForViewers(t *testing.T) {
	a := newAPI(t).withVM(t)
	operator, viewer := a.as(t, vm.RoleOperator), a.as(t, vm.RoleViewer)
	const path = "/vms/web-1/cloud_init"
	a.want(t, 404, "GET", path, "")
	body := `{"ssh_authorized_keys":["` + someKey + `"],"password_hash":"` + someHash + `","user_data":"#!/bin/sh\ntrue # s3cr3t\n","network_config":"version: 2\n",
		"users":[{"name":"ops","password_hash":"` + someHash + `","sudo":"ALL=(ALL) NOPASSWD:ALL","groups":["adm"],"shell":"/bin/sh"},{"name":"dev"}]}`
	r := a.want(t, 200, "PUT", path, body)
	c := into[openapi.CloudInitDetails](t, r)
	if c.Hostname != "web-1" || !c.Attached || len(c.SSHAuthorizedKeys) != 1 || *c.PasswordHash != someHash || c.Redacted || c.Status != nil || c.InstanceID == "" ||
		c.Files.MetaData == nil || c.Files.NetworkConfig == nil || *c.Files.UserData != *c.UserData || *c.UserData != "#!/bin/sh\ntrue # s3cr3t\n" ||
		*c.NetworkConfig != "version: 2\n" || c.VendorData != nil || !strings.Contains(*c.Files.VendorData, someHash) {
		t.Errorf("%s", r.body)
	}
	if u := c.Users; len(u) != 2 || u[0].Name != "ops" || *u[0].PasswordHash != someHash || *u[0].Sudo != "ALL=(ALL) NOPASSWD:ALL" || u[0].Groups[0] != "adm" ||
		*u[0].Shell != "/bin/sh" || u[1].PasswordHash != nil || u[1].Sudo != nil || u[1].Shell != nil || len(u[1].Groups) != 0 {
		t.Errorf("%+v", u)
	}
	got := a.want(t, 200, "GET", path, "")
	if string(got.body) != string(r.body) || got.Header.Get("ETag") != r.Header.Get("ETag") {
		t.Errorf("%v %s", got.Header, got.body)
	}
	if got := a.want(t, 200, "GET", path, "", operator...); string(got.body) != string(r.body) {
		t.Errorf("an operator gets %s, want %s", got.body, r.body)
	}
	shown := a.want(t, 200, "GET", path, "", viewer...)
	v := into[openapi.CloudInitDetails](t, shown)
	if !v.Redacted || *v.PasswordHash != "***" || *v.Users[0].PasswordHash != "***" || v.Users[1].PasswordHash != nil || v.UserData != nil || v.VendorData != nil ||
		v.NetworkConfig != nil || v.Files != (openapi.CloudInitFiles{}) || v.Hostname != c.Hostname || v.InstanceID != c.InstanceID || v.Users[0].Name != "ops" {
		t.Errorf("a viewer gets %s", shown.body)
	}
	for name, x := range map[string]struct {
		summary *openapi.CloudInitSummary
		data    *string
		parts   []string
	}{
		"user_data":      {v.Summaries.UserData, c.UserData, []string{"#!"}},
		"network_config": {v.Summaries.NetworkConfig, c.NetworkConfig, []string{}},
		"meta-data":      {v.Summaries.Files.MetaData, c.Files.MetaData, []string{}},
		"user-data":      {v.Summaries.Files.UserData, c.Files.UserData, []string{"#!"}},
		"vendor-data":    {v.Summaries.Files.VendorData, c.Files.VendorData, []string{"#cloud-config"}},
		"network-config": {v.Summaries.Files.NetworkConfig, c.Files.NetworkConfig, []string{}},
	} {
		sum := sha256.Sum256([]byte(*x.data))
		want := openapi.CloudInitSummary{SizeBytes: len(*x.data), SHA256: hex.EncodeToString(sum[:]), Parts: x.parts}
		if x.summary == nil || !reflect.DeepEqual(*x.summary, want) {
			t.Errorf("the summary of %s is %+v, want %+v", name, x.summary, want)
		}
	}
	if v.Summaries.VendorData != nil || !reflect.DeepEqual(v.Summaries, c.Summaries) {
		t.Errorf("the summaries are %+v, and those of an operator %+v", v.Summaries, c.Summaries)
	}
	a.want(t, 403, "PUT", path, body, viewer...)
	for _, p := range []string{path, "/vms/web-1", "/events?limit=1000", "/operations", "/vms/web-1/why"} {
		if r := a.want(t, 200, "GET", p, "", viewer...); strings.Contains(string(r.body), someHash) || strings.Contains(string(r.body), "s3cr3t") {
			t.Errorf("%s shows a secret to a viewer", p)
		}
	}
	for _, p := range []string{"/vms/web-1", "/events?limit=1000", "/operations", "/vms/web-1/why"} {
		if r := a.want(t, 200, "GET", p, ""); strings.Contains(string(r.body), someHash) {
			t.Errorf("%s contains the hash", p)
		}
	}
	if strings.Contains(a.log.String(), someHash) {
		t.Error("the log contains the hash")
	}
	a.want(t, 204, "DELETE", "/vms/web-1/cdroms/seed", "")
	ejected := a.want(t, 200, "GET", path, "")
	if into[openapi.CloudInitDetails](t, ejected).Attached {
		t.Errorf("%s", ejected.body)
	}
	a.want(t, 412, "PUT", path, `{}`, "If-Match", r.Header.Get("ETag"))
	again := into[openapi.CloudInitDetails](t,
		a.want(t, 200, "PUT", path,
			`{"hostname":"shop.example.org","reprovision":true,"vendor_data":"#cloud-config\n{}\n"}`,
			"If-Match", ejected.Header.Get("ETag")))
	if !again.Attached || again.InstanceID == c.InstanceID || again.Hostname != "shop.example.org" ||
		again.PasswordHash != nil || len(again.Users) != 0 || again.Files.VendorData == nil {
		t.Errorf("%+v", again)
	}
	withNewline := a.want(t, 200, "PUT", path, `{"ssh_authorized_keys":["`+someKey+`\r\n"],"users":[{"name":"ops","ssh_authorized_keys":["no-pty `+someKey+`\n"]}]}`)
	if k := into[openapi.CloudInitDetails](t, withNewline); k.SSHAuthorizedKeys[0] != someKey || k.Users[0].SSHAuthorizedKeys[0] != "no-pty "+someKey {
		t.Errorf("the keys are %q and %q", k.SSHAuthorizedKeys, k.Users[0].SSHAuthorizedKeys)
	}
	a.want(t, 404, "GET", "/vms/none/cloud_init", "")
	a.want(t, 404, "PUT", "/vms/none/cloud_init", `{}`)
	for body, field := range map[string]string{
		`{"hostname":"10.0.0.1"}`:               "/hostname",
		`{"users":[{"name":"a"},{"name":"a"}]}`: "/users/1/name",
		`{"ssh_authorized_keys":["x"]}`:         "/ssh_authorized_keys/0",
		`{"password_hash":"plain"}`:             "/password_hash",
		`{"x":1}`:                               "/x",
		`{"users":[{"name":"a","shell":"sh"}]}`: "/users/0/shell",
	} {
		if p := a.want(t, 400, "PUT", path, body).problem(t); len(p.Errors) != 1 || p.Errors[0].Field != field ||
			strings.Contains(p.Detail, "plain") {
			t.Errorf("%s: %+v", body, p)
		}
	}
}

func TestTheCloudInitStatusOfAGuestIsShown(t *testing.T) {
	t.Parallel()
	a := running(t)
	a.want(t, 200, "PUT", "/vms/web-1/cloud_init", `{}`)
	a.driver.SetAgent("web-1", vm.Agent{State: vm.AgentConnected, Version: "7.2", LastSeenAt: time.Now()})
	a.driver.Run = func(string, vm.GuestCommand) vm.GuestResult {
		return vm.GuestResult{Exited: true, Stdout: []byte("result\n" + `{"v1":{"errors":["no\u0007 such disk"]}}`)}
	}
	r := a.want(t, 200, "GET", "/vms/web-1/cloud_init", "")
	c := into[openapi.CloudInitDetails](t, r)
	if c.Status == nil || c.Status.Status != "error" || c.Status.Detail != nil || len(c.Status.Errors) != 1 ||
		strings.Contains(c.Status.Errors[0], "\a") {
		t.Errorf("%s", r.body)
	}
	a.driver.Run = func(string, vm.GuestCommand) vm.GuestResult {
		return vm.GuestResult{Exited: true, Stdout: []byte("result\n" + `{"v1":{"datasource":"x","errors":[]}}`)}
	}
	done := a.want(t, 200, "GET", "/vms/web-1/cloud_init", "")
	if done.Header.Get("ETag") == r.Header.Get("ETag") {
		t.Errorf("two different answers have the entity tag %s", done.Header.Get("ETag"))
	}
	// A precondition compares only the recorded data, not the reported status.
	a.want(t, 200, "PUT", "/vms/web-1/cloud_init", `{}`, "If-Match", r.Header.Get("ETag"))
}
