package vm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestASummaryNamesThePartsAndShowsNothingElse(t *testing.T) {
	const secret = "hunter2"
	message := "Content-Type: multipart/mixed; boundary=\"b\"\nMIME-Version: 1.0\n\n" +
		"--b\nContent-Type: text/cloud-config\nContent-Disposition: attachment; filename=\"users.yaml\"\n\n#cloud-config\npassword: " + secret + "\n" +
		"--b\nContent-Type: text/x-shellscript; name=\"setup.sh\"\n\n#!/bin/sh\necho " + secret + "\n" +
		"--b\nContent-Type: text/x-shellscript\n\n#!/bin/sh\necho " + secret + "\n" +
		"--b\n\n#!/bin/sh\n" +
		"--b\nContent-Type: multipart/mixed; boundary=\"c\"\n\n--c\nContent-Type: text/jinja2\n\nx\n--c--\n" +
		"--b--\n"
	for _, c := range []struct {
		data  string
		parts []string
	}{
		{"#cloud-config\npassword: " + secret + "\n", []string{"#cloud-config"}},
		{"#!/bin/sh -c " + secret + "\n", []string{"#!"}},
		{"## template: jinja\n#cloud-config\n", []string{"## template: jinja"}},
		{"version: 2\n# " + secret, nil},
		{"", nil},
		{message, []string{"users.yaml", "setup.sh", "text/x-shellscript", "text/plain", "text/jinja2"}},
		{"\n" + strings.ReplaceAll(message, "\n", "\r\n"), []string{"users.yaml", "setup.sh", "text/x-shellscript", "text/plain", "text/jinja2"}},
		{multipartData("#cloud-config\n{}\n", "#!/bin/sh\necho ü\n"), []string{"text/plain", "text/plain"}},
		{"MIME-Version: 1.0\nContent-Type: text/cloud-config\n\n" + secret, []string{"text/cloud-config"}},
		{"MIME-Version: 1.0\nContent-Type: //" + secret + "\n\n" + secret, []string{"text/plain"}},
		{"MIME-Version: 1.0\nContent-Type: multipart/mixed\n\n" + secret, []string{"multipart/mixed"}},
		{"Content-Type: multipart/mixed; boundary=b\n\n" + secret, nil},
		{"MIME-Version: 1.0\n" + secret, nil},
	} {
		got := SummarizeData(c.data)
		if !slices.Equal(got.Parts, c.parts) || got.SizeBytes != len(c.data) || len(got.SHA256) != 64 {
			t.Errorf("the summary of %q is %+v, want the parts %q", c.data, got, c.parts)
		}
		if strings.Contains(fmt.Sprint(got), secret) {
			t.Errorf("the summary of %q shows its content: %+v", c.data, got)
		}
	}
	const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // of sha256sum </dev/null
	if got := SummarizeData("").SHA256; got != empty {
		t.Errorf("the SHA-256 of no data is %s, want %s", got, empty)
	}
}

func TestASummaryIsBounded(t *testing.T) {
	many := "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n" + strings.Repeat("--b\n\nx\n", 1000) + "--b--\n"
	if got := SummarizeData(many).Parts; len(got) != maxParts {
		t.Errorf("the summary of 1000 parts names %d, want %d", len(got), maxParts)
	}
	long := "MIME-Version: 1.0\nContent-Type: text/plain; name=\"" + strings.Repeat("ü", 1000) + "\"\n\nx"
	if got := SummarizeData(long).Parts; len(got) != 1 || len([]rune(got[0])) > maxPartName {
		t.Errorf("the summary has the parts %q, want one of at most %d characters", got, maxPartName)
	}
	deep := "x\n"
	for i := range 100 {
		deep = fmt.Sprintf("Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n%s--b%d--\n", i, i, deep, i)
	}
	if got := SummarizeData("MIME-Version: 1.0\n" + deep).Parts; len(got) != 0 {
		t.Errorf("the summary of 100 messages in one another has the parts %q", got)
	}
}

func FuzzSummarizeData(f *testing.F) {
	f.Add("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nx\n--b--\n")
	f.Add("#cloud-config\n{}\n")
	f.Fuzz(func(t *testing.T, data string) {
		got := SummarizeData(data)
		if len(got.Parts) > maxParts || got.SizeBytes != len(data) {
			t.Errorf("%+v", got)
		}
		for _, name := range got.Parts {
			if len([]rune(name)) > maxPartName {
				t.Errorf("the name %q is longer than %d", name, maxPartName)
			}
		}
	})
}
