package vm

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// A DataFormat says which program in the guest reads the user data.
type DataFormat string

// The formats of user data. The zero value is DataCloudInit.
const (
	DataCloudInit DataFormat = "cloud-init"
	DataRaw       DataFormat = "raw"      // passed without a check, such as a configuration of Talos
	DataIgnition  DataFormat = "ignition" // passed in fw_cfg, where Ignition looks for it
)

// DataFormats lists every format of user data.
var DataFormats = []DataFormat{DataCloudInit, DataRaw, DataIgnition}

// SeedIgnition is the name of the file in the result of [SeedFiles] that is passed to the guest
// in fw_cfg.
const SeedIgnition = "ignition"

// gzipMark begins gzip data.
const gzipMark = "\x1f\x8b\x08"

// Normalize replaces UserDataBase64 by UserData if it is text. Data for cloud-init or Ignition
// are decompressed first if they are gzip data. Normalize returns a [Fault] of code [CodeInvalid]
// if the data cannot be decoded. prefix is the JSON pointer of c in the request.
func (c *CloudInit) Normalize(prefix string) error {
	if c.Format == DataCloudInit {
		c.Format = ""
	}
	if c.UserDataBase64 == "" {
		return nil
	}
	field := prefix + "/user_data_base64"
	if c.UserData != "" {
		return InvalidField(field, "must not be given together with user_data")
	}
	data, err := base64.StdEncoding.Strict().DecodeString(c.UserDataBase64)
	if err != nil {
		return InvalidField(field, "is not valid base64 with the alphabet of RFC 4648, section 4, and padding: %v", err)
	}
	if c.Format != DataRaw && strings.HasPrefix(string(data), gzipMark) {
		if data, err = gunzip(data, maxUserData); err != nil {
			return InvalidField(field, "%v", err)
		}
	}
	switch {
	case len(data) > maxUserData:
		return InvalidField(field, "must be at most %d KiB", maxUserData>>10)
	case isText(string(data)):
		c.UserData, c.UserDataBase64 = string(data), ""
	case c.Format == DataRaw:
		c.UserDataBase64 = base64.StdEncoding.EncodeToString(data)
	default:
		return InvalidField(field, "must be UTF-8 text without NUL, or such text compressed with gzip: "+
			"other data need the format raw")
	}
	return nil
}

// isText reports whether data can be shown as text.
func isText(data string) bool { return utf8.ValidString(data) && !strings.ContainsRune(data, 0) }

// Data returns the user data, which may be binary.
func (c CloudInit) Data() string {
	if c.UserDataBase64 == "" {
		return c.UserData
	}
	data, _ := base64.StdEncoding.DecodeString(c.UserDataBase64) // Normalize has checked it
	return string(data)
}

// checkData returns a [Fault] of code [CodeInvalid] if the user data do not have their format, or
// if another field has no reader in a guest with user data of that format.
func (c CloudInit) checkData(prefix string) error {
	field := prefix + "/user_data"
	switch c.Format {
	case "", DataCloudInit:
		err := checkUserData(field, c.UserData)
		if f, ok := err.(*Fault); ok && markOf(c.UserData) == "" {
			f.Hint = "data for another program than cloud-init need the format raw, and Ignition's the format ignition"
		}
		return err
	case DataRaw, DataIgnition:
	default:
		return InvalidField(prefix+"/format", "must be cloud-init, raw or ignition")
	}
	if c.Data() == "" {
		return InvalidField(field, "is missing: the format %s requires user data", c.Format)
	}
	for _, other := range []struct {
		name             string
		given, inCloudIn bool // inCloudIn: only cloud-init reads it
	}{
		{"ssh_authorized_keys", len(c.SSHAuthorizedKeys) > 0, true},
		{"users", len(c.Users) > 0, true},
		{"password_hash", c.PasswordHash != "", true},
		{"hostname", c.Hostname != "", false},
		{"vendor_data", c.VendorData != "", false},
		{"network_config", c.NetworkConfig != "", false},
	} {
		if other.given && (other.inCloudIn || c.Format == DataIgnition) {
			return InvalidField(prefix+"/"+other.name,
				"must not be given with the format %s: only cloud-init reads it. Put it into the user data", c.Format)
		}
	}
	if len(c.UserData) > maxUserData {
		return InvalidField(field, "must be at most %d KiB", maxUserData>>10)
	}
	if c.Format == DataIgnition {
		return checkIgnition(field, c.UserData)
	}
	return nil
}

// checkIgnition returns a [Fault] of code [CodeInvalid] if text is no configuration for Ignition.
func checkIgnition(field, text string) error {
	var config struct {
		Ignition struct {
			Version string `json:"version"`
		} `json:"ignition"`
	}
	err := json.Unmarshal([]byte(text), &config)
	if err == nil && config.Ignition.Version != "" {
		return nil
	}
	f := InvalidField(field, "must be a JSON object with ignition.version, such as {\"ignition\": {\"version\": \"3.4.0\"}}")
	if err != nil {
		f = InvalidField(field, "must be a JSON object with ignition.version: %v", err)
	}
	f.Hint = "butane makes Ignition's JSON of Butane's YAML"
	return f
}
