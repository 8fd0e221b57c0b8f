package vm

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Limits of cloud-init data.
const (
	maxSSHKeys       = 64        // per user
	maxSSHKeyBytes   = 16 << 10  // per public key
	maxCloudUsers    = 64        // without the default user
	maxUserGroups    = 64        // per user
	maxUserData      = 512 << 10 // bytes; also of vendor data
	maxNetworkConfig = 64 << 10  // bytes
	maxSudoRule      = 1024      // characters
)

// A CloudInit is the configuration that cloud-init in a guest applies at its first boot.
type CloudInit struct {
	Hostname          string      `json:"hostname,omitempty"` // empty: the id of the VM
	SSHAuthorizedKeys []string    `json:"ssh_authorized_keys,omitempty"`
	Users             []CloudUser `json:"users,omitempty"`
	PasswordHash      string      `json:"password_hash,omitempty"` // of the default user of the image, as in crypt(5)
	Format            DataFormat  `json:"format,omitempty"`        // of the user data
	UserData          string      `json:"user_data,omitempty"`
	UserDataBase64    string      `json:"user_data_base64,omitempty"` // instead, for user data that is not text
	VendorData        string      `json:"vendor_data,omitempty"`
	NetworkConfig     string      `json:"network_config,omitempty"` // empty: generated from the NICs of the VM
}

// A CloudUser is a user that cloud-init creates.
type CloudUser struct {
	Name              string   `json:"name"`
	SSHAuthorizedKeys []string `json:"ssh_authorized_keys,omitempty"`
	PasswordHash      string   `json:"password_hash,omitempty"` // as in crypt(5)
	Sudo              string   `json:"sudo,omitempty"`          // a sudoers(5) rule, for example "ALL=(ALL) NOPASSWD:ALL"
	Groups            []string `json:"groups,omitempty"`
	Shell             string   `json:"shell,omitempty"` // absolute path
}

var (
	userPattern = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	// hashPattern matches the crypt(5) hashes that current guests support: MD5, bcrypt,
	// SHA-256, SHA-512, yescrypt and gost-yescrypt.
	hashPattern = regexp.MustCompile(`^(\$1\$[!-#%-9;-~]{1,8}\$[./0-9A-Za-z]{22}` +
		`|\$2[aby]\$[0-9]{2}\$[./0-9A-Za-z]{53}` +
		`|\$5\$(rounds=[0-9]{1,9}\$)?[!-#%-9;-~]{1,16}\$[./0-9A-Za-z]{43}` +
		`|\$6\$(rounds=[0-9]{1,9}\$)?[!-#%-9;-~]{1,16}\$[./0-9A-Za-z]{86}` +
		`|\$g?y\$[./0-9A-Za-z]+\$[./0-9A-Za-z]{0,86}\$[./0-9A-Za-z]{43})$`)
	sshKeyTypes = []string{
		"ssh-ed25519",
		"ssh-rsa",
		"ecdsa-sha2-nistp256",
		"ecdsa-sha2-nistp384",
		"ecdsa-sha2-nistp521",
		"sk-ssh-ed25519@openssh.com",
		"sk-ecdsa-sha2-nistp256@openssh.com",
	}
)

// Check returns a [Fault] of code [CodeInvalid] if c is invalid. prefix is the JSON pointer of
// c in the request, empty for the root.
func (c CloudInit) Check(prefix string) error {
	if c.Hostname != "" && !validHostname(c.Hostname) {
		return InvalidField(prefix+"/hostname",
			"must be a host name in lower case: labels of 1 to 63 characters of a-z, 0-9 and '-', "+
				"separated by dots, at most 253 characters in all, and not an IP address")
	}
	if err := checkSSHKeys(prefix+"/ssh_authorized_keys", c.SSHAuthorizedKeys); err != nil {
		return err
	}
	if len(c.Users) > maxCloudUsers {
		return InvalidField(prefix+"/users", "must have at most %d entries", maxCloudUsers)
	}
	named := map[string]int{}
	for i, u := range c.Users {
		field := fmt.Sprintf("%s/users/%d", prefix, i)
		if err := u.check(field); err != nil {
			return err
		}
		if first, ok := named[u.Name]; ok {
			return InvalidField(field+"/name", "%s is also the name of user %d", u.Name, first)
		}
		named[u.Name] = i
	}
	if err := checkHash(prefix+"/password_hash", c.PasswordHash); err != nil {
		return err
	}
	if err := c.checkData(prefix); err != nil {
		return err
	}
	if err := checkUserData(prefix+"/vendor_data", c.VendorData); err != nil {
		return err
	}
	return checkNetworkConfig(prefix+"/network_config", c.NetworkConfig)
}

// validHostname reports whether cloud-init uses s unchanged as the host name. It would turn an
// IPv4 address into a name such as "ip-192-0-2-1".
func validHostname(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil || len(s) > 253 {
		return false
	}
	return !slices.ContainsFunc(strings.Split(s, "."), func(label string) bool { return !ValidName(label) })
}

// userNameRule describes userPattern.
const userNameRule = "must have 1 to 32 characters of a-z, 0-9, '_' and '-', and begin with a letter or '_'"

// check returns a [Fault] of code [CodeInvalid] if u is invalid. field is the JSON pointer of
// u in the request.
func (u CloudUser) check(field string) error {
	if !userPattern.MatchString(u.Name) {
		return InvalidField(field+"/name", userNameRule)
	}
	if u.Name == "default" {
		return InvalidField(field+"/name",
			"cloud-init reserves the name default for the image's own user: set its keys and password outside users")
	}
	if err := checkSSHKeys(field+"/ssh_authorized_keys", u.SSHAuthorizedKeys); err != nil {
		return err
	}
	if err := checkHash(field+"/password_hash", u.PasswordHash); err != nil {
		return err
	}
	if !plainText(u.Sudo, maxSudoRule, "") {
		return InvalidField(field+"/sudo",
			"must be one line of at most %d characters, a rule such as ALL=(ALL) NOPASSWD:ALL", maxSudoRule)
	}
	if len(u.Groups) > maxUserGroups {
		return InvalidField(field+"/groups", "must have at most %d entries", maxUserGroups)
	}
	for i, g := range u.Groups {
		if !userPattern.MatchString(g) {
			return InvalidField(fmt.Sprintf("%s/groups/%d", field, i), userNameRule)
		}
	}
	if u.Shell != "" && (!path.IsAbs(u.Shell) || !plainText(u.Shell, 255, "") || strings.Contains(u.Shell, ":")) {
		return InvalidField(field+"/shell",
			"must be an absolute path of at most 255 characters, without ':' or control characters")
	}
	return nil
}

// checkHash returns a [Fault] of code [CodeInvalid] if hash is neither empty nor a supported
// password hash. The fault does not contain the value, since it may be the password itself.
func checkHash(field, hash string) error {
	if hash == "" || hashPattern.MatchString(hash) {
		return nil
	}
	f := InvalidField(field, "must be a password hash as in crypt(5), which begins with "+
		"$1$, $2a$, $2b$, $2y$, $5$, $6$, $y$ or $gy$, not the password")
	f.Hint = "openssl passwd -6 asks for a password and prints its hash"
	return f
}

// checkSSHKeys returns a [Fault] of code [CodeInvalid] if there are too many keys or one of
// them is not a public key.
func checkSSHKeys(field string, keys []string) error {
	if len(keys) > maxSSHKeys {
		return InvalidField(field, "must have at most %d entries", maxSSHKeys)
	}
	for i, key := range keys {
		if problem := sshKeyFault(key); problem != "" {
			return InvalidField(fmt.Sprintf("%s/%d", field, i), "%s", problem)
		}
	}
	return nil
}

// cutKeyOptions splits a line of an authorized_keys file into the options, which end at the first
// white space outside of quotes, and the rest. options is empty if the line begins with the key.
func cutKeyOptions(line string) (options, rest string) {
	line = strings.TrimLeft(line, " ")
	quoted := false
	for i := range len(line) {
		switch c := line[i]; {
		case c == '"' && (i == 0 || line[i-1] != '\\'):
			quoted = !quoted
		case c == ' ' && !quoted:
			if slices.Contains(sshKeyTypes, line[:i]) {
				return "", line
			}
			return line[:i], line[i:]
		}
	}
	return "", line
}

// keyOption matches an option of a key and the comma or the end after it.
var keyOption = regexp.MustCompile(`^([A-Za-z0-9-]+)(="((?:[^"\\]|\\.)*)")?(,|$)`)

// keyOptions are the options of keys that sshd(8) knows. The value says whether an option has one.
var keyOptions = map[string]bool{
	"agent-forwarding": false, "cert-authority": false, "no-agent-forwarding": false, "no-port-forwarding": false,
	"no-pty": false, "no-touch-required": false, "no-user-rc": false, "no-x11-forwarding": false,
	"port-forwarding": false, "pty": false, "restrict": false, "user-rc": false, "verify-required": false,
	"x11-forwarding": false,
	"command":        true, "environment": true, "expiry-time": true, "from": true, "permitlisten": true,
	"permitopen": true, "principals": true, "tunnel": true,
}

// keyOptionFault returns why the options of a key are invalid, or "". sshd ignores a key with an
// option that it does not know.
func keyOptionFault(options string) string {
	for options != "" {
		m := keyOption.FindStringSubmatch(options)
		if m == nil {
			return `the options before the key must be separated by commas, and values must be in double quotes, ` +
				`as in from="192.0.2.0/24",no-pty`
		}
		hasValue, known := keyOptions[strings.ToLower(m[1])]
		switch {
		case !known:
			return "sshd does not know the option " + m[1] + ": use one of " + strings.Join(sortedKeys(keyOptions), ", ")
		case hasValue != (m[2] != ""):
			return fmt.Sprintf("the option %s must be written %s", m[1], map[bool]string{true: m[1] + `="value"`, false: m[1]}[hasValue])
		}
		options = options[len(m[0]):]
	}
	return ""
}

// sshKeyFault returns the reason why key is not a line of a public key file, or "" if it is
// one. The reason does not contain the value, since it may be a private key.
func sshKeyFault(key string) string {
	if len(key) > maxSSHKeyBytes || !plainText(key, maxSSHKeyBytes, "") {
		return fmt.Sprintf("must be one line of at most %d KiB without control characters, the content of a .pub file",
			maxSSHKeyBytes>>10)
	}
	options, bare := cutKeyOptions(key)
	words := strings.Fields(bare)
	if len(words) < 2 || !slices.Contains(sshKeyTypes, words[0]) {
		return "must be a public key: optional options as in sshd(8), then one of " + strings.Join(sshKeyTypes, ", ") +
			", then the key in base64, then an optional comment"
	}
	if problem := keyOptionFault(options); problem != "" {
		return problem
	}
	blob, err := base64.StdEncoding.DecodeString(words[1])
	if err != nil {
		return "the text after " + words[0] + " is not base64"
	}
	// A key is a sequence of strings, each preceded by its length (RFC 4253, section 6.6).
	// The first one repeats the type.
	for n := 0; len(blob) > 0; n++ {
		if len(blob) < 4 || uint64(len(blob)-4) < uint64(binary.BigEndian.Uint32(blob)) {
			return "the key is truncated"
		}
		size := 4 + int(binary.BigEndian.Uint32(blob))
		if n == 0 && string(blob[4:size]) != words[0] {
			return "the key is not of the type " + words[0] + " named before it"
		}
		if n == 0 && size == len(blob) {
			return "the key is truncated"
		}
		blob = blob[size:]
	}
	return ""
}

// A CloudInitView is the recorded cloud-init data of a VM, secrets included, and the
// report of cloud-init in the guest.
type CloudInitView struct {
	InstanceID string
	Spec       CloudInit
	Attached   bool              // the VM has the drive of the seed
	Files      map[string]string // files of the seed at the next start, by name
	// Guest is the status that cloud-init in the guest reports; nil if unknown.
	Guest   *CloudInitStatus
	Version Version // of the VM
}

// A CloudInitStatus is the status that cloud-init in a guest reports. Its texts come from the
// guest.
type CloudInitStatus struct {
	Status string // such as "done", "running", "error", "disabled", or [CloudInitAbsent]
	Detail string
	Errors []string
}

// CloudInitAbsent is the status of a guest without cloud-init.
const CloudInitAbsent = "absent"

// Finished reports whether cloud-init in VM id has completed its work or has none. It returns
// a [Fault] of code [CodeGuestRefused] if cloud-init failed.
func (s CloudInitStatus) Finished(id string) (bool, error) {
	switch s.Status {
	case "done", "disabled", CloudInitAbsent:
		return true, nil
	case "error":
		return false, &Fault{
			Code:   CodeGuestRefused,
			Detail: fmt.Sprintf("cloud-init of VM %s failed: %s", id, Printable(strings.Join(s.Errors, "; "))),
			Hint:   "see /var/log/cloud-init.log in the guest",
		}
	}
	return false, nil
}
