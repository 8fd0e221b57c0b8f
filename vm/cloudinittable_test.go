package vm

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// A tableText is a text of testdata/cloudinit.json with the verdict of cloud-init 22.4 itself,
// which test/debian/judge.py returns.
type tableText struct {
	Name     string `json:"name"`
	Kind     string `json:"kind"` // "user-data" or "network-config"
	Text     string `json:"text"`
	Verdict  string `json:"verdict"`  // "used", or "dropped" and the reason
	Stricter string `json:"stricter"` // why a text that cloud-init uses is refused here; empty if it is not
}

func readTable(t *testing.T) []tableText {
	t.Helper()
	b, err := os.ReadFile("testdata/cloudinit.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []tableText
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTextsThatCloudInitDropsAreRefusedAndNoOthers(t *testing.T) {
	for _, c := range readTable(t) {
		data := CloudInit{UserData: c.Text}
		if c.Kind == "network-config" {
			data = CloudInit{NetworkConfig: c.Text}
		}
		err := data.Check("")
		switch {
		case c.Verdict == "used" && c.Stricter == "" && err != nil:
			t.Errorf("%s: cloud-init uses it, but Check returns %v", c.Name, err)
		case (c.Verdict != "used" || c.Stricter != "") && err == nil:
			t.Errorf("%s: Check returns nil, but cloud-init: %s %s", c.Name, c.Verdict, c.Stricter)
		}
		if err != nil && testing.Verbose() {
			t.Logf("%s: %v", c.Name, err)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: the error has several lines: %v", c.Name, err)
		}
	}
}
