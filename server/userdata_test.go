package server

import (
	"encoding/base64"
	"strings"
	"testing"

	"vmand/openapi"
	"vmand/vm"
)

func TestUserDataOfOtherPrograms(t *testing.T) {
	a := newAPI(t).withVM(t)
	viewer := a.as(t, vm.RoleViewer)
	const path = "/vms/web-1/cloud_init"
	c := into[openapi.CloudInitDetails](t, a.want(t, 200, "PUT", path, `{"format":"raw","user_data":"version: v1alpha1\n"}`))
	if c.Format != "raw" || *c.UserData != "version: v1alpha1\n" || c.UserDataBase64 != nil || *c.Files.UserData != *c.UserData ||
		c.Files.VendorData != nil {
		t.Errorf("text for Talos is %+v", c)
	}
	binary := base64.StdEncoding.EncodeToString([]byte("MZ\x00\xff"))
	c = into[openapi.CloudInitDetails](t, a.want(t, 200, "PUT", path, `{"format":"raw","user_data_base64":"`+binary+`"}`))
	if c.UserData != nil || *c.UserDataBase64 != binary || c.Files.UserData != nil || c.Summaries.UserData.SizeBytes != 4 ||
		c.Summaries.Files.UserData.SizeBytes != 4 {
		t.Errorf("binary data is %+v", c)
	}
	v := into[openapi.CloudInitDetails](t, a.want(t, 200, "GET", path, "", viewer...))
	if !v.Redacted || v.UserDataBase64 != nil || v.Summaries.UserData.SizeBytes != 4 {
		t.Errorf("a viewer gets %+v", v)
	}
	script := base64.StdEncoding.EncodeToString([]byte("#!/bin/sh\ntrue\n"))
	c = into[openapi.CloudInitDetails](t, a.want(t, 200, "PUT", path, `{"user_data_base64":"`+script+`"}`))
	if c.Format != "cloud-init" || *c.UserData != "#!/bin/sh\ntrue\n" || c.UserDataBase64 != nil {
		t.Errorf("text in base64 is %+v", c)
	}
	for body, want := range map[string]string{
		`{"user_data":"#!","user_data_base64":"IyE="}`:                        "/user_data_base64",
		`{"user_data_base64":"###"}`:                                          "/user_data_base64",
		`{"user_data_base64":"` + binary + `"}`:                               "/user_data_base64",
		`{"format":"yaml","user_data":"a"}`:                                   "/format",
		`{"format":"raw"}`:                                                    "/user_data",
		`{"format":"ignition","user_data":"variant: fcos\n"}`:                 "/user_data",
		`{"format":"raw","user_data":"a","password_hash":"` + someHash + `"}`: "/password_hash",
	} {
		r := a.want(t, 400, "PUT", path, body)
		if !strings.Contains(string(r.body), `"`+want+`"`) {
			t.Errorf("%s: %s, want the field %s", body, r.body, want)
		}
	}
	r := a.want(t, 400, "POST", "/vms", `{"template_name":"small","cloud_init":{"user_data_base64":"###"}}`)
	if !strings.Contains(string(r.body), `"/cloud_init/user_data_base64"`) {
		t.Errorf("%s", r.body)
	}
}
