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
	maxSSHKeys       = 64        // of the default user, and of each other one
	maxSSHKeyBytes   = 16 << 10  // of one public key
	maxCloudUsers    = 64        // besides the default user
	maxUserGroups    = 64        // of one user
	maxUserData      = 512 << 10 // bytes; of vendor data too
	maxNetworkConfig = 64 << 10  // bytes
	maxSudoRule      = 1024      // characters
)

// A CloudInit is what cloud-init in a guest is told at its first boot.
type CloudInit struct {
	Hostname          string      `json:"hostname,omitempty"` // empty: the VM's id
	SSHAuthorizedKeys []string    `json:"ssh_authorized_keys,omitempty"`
	Users             []CloudUser `json:"users,omitempty"`
	PasswordHash      string      `json:"password_hash,omitempty"` // of the image's default user, as in crypt(5)
	UserData          string      `json:"user_data,omitempty"`
	VendorData        string      `json:"vendor_data,omitempty"`
	NetworkConfig     string      `json:"network_config,omitempty"` // empty: made for the VM's NICs
}

// A CloudUser is a user that cloud-init makes.
type CloudUser struct {
	Name              string   `json:"name"`
	SSHAuthorizedKeys []string `json:"ssh_authorized_keys,omitempty"`
	PasswordHash      string   `json:"password_hash,omitempty"` // as in crypt(5)
	Sudo              string   `json:"sudo,omitempty"`          // a rule as in sudoers(5), such as "ALL=(ALL) NOPASSWD:ALL"
	Groups            []string `json:"groups,omitempty"`
	Shell             string   `json:"shell,omitempty"` // absolute path
}

var (
	userPattern = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	// The hashes of crypt(5) that guests of today know: MD5, bcrypt, SHA-256,
	// SHA-512, yescrypt and gost-yescrypt.
	hashPattern = regexp.MustCompile(`^(\$1\$[!-#%-9;-~]{1,8}\$[./0-9A-Za-z]{22}` +
		`|\$2[aby]\$[0-9]{2}\$[./0-9A-Za-z]{53}` +
		`|\$5\$(rounds=[0-9]{1,9}\$)?[!-#%-9;-~]{1,16}\$[./0-9A-Za-z]{43}` +
		`|\$6\$(rounds=[0-9]{1,9}\$)?[!-#%-9;-~]{1,16}\$[./0-9A-Za-z]{86}` +
		`|\$g?y\$[./0-9A-Za-z]+\$[./0-9A-Za-z]{0,86}\$[./0-9A-Za-z]{43})$`)
	sshKeyTypes = []string{"ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
		"sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"}
)

// Check reports what is wrong with c as a [Fault] of code [CodeInvalid]. prefix
// is where the request has c: empty for its root.
func (c CloudInit) Check(prefix string) error {
	if c.Hostname != "" && !validHostname(c.Hostname) {
		return InvalidField(prefix+"/hostname", "must be a host name in lower case: labels of 1 to 63 of a-z, 0-9 and '-' with dots between them, at most 253 characters, and no IP address")
	}
	if err := checkSSHKeys(prefix+"/ssh_authorized_keys", c.SSHAuthorizedKeys); err != nil {
		return err
	}
	if len(c.Users) > maxCloudUsers {
		return InvalidField(prefix+"/users", "must be at most %d", maxCloudUsers)
	}
	named := map[string]int{}
	for i, u := range c.Users {
		field := fmt.Sprintf("%s/users/%d", prefix, i)
		if err := u.check(field); err != nil {
			return err
		}
		if first, ok := named[u.Name]; ok {
			return InvalidField(field+"/name", "%q is the name of user %d too", u.Name, first)
		}
		named[u.Name] = i
	}
	if err := checkHash(prefix+"/password_hash", c.PasswordHash); err != nil {
		return err
	}
	if err := checkUserData(prefix+"/user_data", c.UserData); err != nil {
		return err
	}
	if err := checkUserData(prefix+"/vendor_data", c.VendorData); err != nil {
		return err
	}
	return checkNetworkConfig(prefix+"/network_config", c.NetworkConfig)
}

// validHostname reports whether cloud-init takes s for a host name: of an IPv4
// address it would make "ip-192-0-2-1".
func validHostname(s string) bool {
	_, err := netip.ParseAddr(s)
	return err != nil && len(s) <= 253 && !slices.ContainsFunc(strings.Split(s, "."), func(label string) bool { return !ValidName(label) })
}

func (u CloudUser) check(field string) error {
	if !userPattern.MatchString(u.Name) {
		return InvalidField(field+"/name", "must be 1 to 32 of a-z, 0-9, '_' and '-', and begin with a letter or '_'")
	}
	if u.Name == "default" {
		return InvalidField(field+"/name", "default is cloud-init's word for the image's own user, whose keys and password are given beside users")
	}
	if err := checkSSHKeys(field+"/ssh_authorized_keys", u.SSHAuthorizedKeys); err != nil {
		return err
	}
	if err := checkHash(field+"/password_hash", u.PasswordHash); err != nil {
		return err
	}
	if !plainText(u.Sudo, maxSudoRule, "") {
		return InvalidField(field+"/sudo", "must be one line of at most %d characters, a rule such as ALL=(ALL) NOPASSWD:ALL", maxSudoRule)
	}
	if len(u.Groups) > maxUserGroups {
		return InvalidField(field+"/groups", "must be at most %d", maxUserGroups)
	}
	for i, g := range u.Groups {
		if !userPattern.MatchString(g) {
			return InvalidField(fmt.Sprintf("%s/groups/%d", field, i), "must be 1 to 32 of a-z, 0-9, '_' and '-', and begin with a letter or '_'")
		}
	}
	if u.Shell != "" && (!path.IsAbs(u.Shell) || !plainText(u.Shell, 255, "") || strings.Contains(u.Shell, ":")) {
		return InvalidField(field+"/shell", "must be an absolute path of at most 255 characters, without ':' and control characters")
	}
	return nil
}

// checkHash does not show the value: it may be the password itself.
func checkHash(field, hash string) error {
	if hash == "" || hashPattern.MatchString(hash) {
		return nil
	}
	f := InvalidField(field, "must be a password's hash as in crypt(5), which begins with $1$, $2a$, $2b$, $2y$, $5$, $6$, $y$ or $gy$, and not the password")
	f.Hint = "openssl passwd -6 asks for a password and prints its hash"
	return f
}

func checkSSHKeys(field string, keys []string) error {
	if len(keys) > maxSSHKeys {
		return InvalidField(field, "must be at most %d", maxSSHKeys)
	}
	for i, key := range keys {
		if why := sshKeyFault(key); why != "" {
			return InvalidField(fmt.Sprintf("%s/%d", field, i), "%s", why)
		}
	}
	return nil
}

// sshKeyFault says why key is no line of a public key file, without showing it:
// it may be the private key. It is empty if key is one.
func sshKeyFault(key string) string {
	if len(key) > maxSSHKeyBytes || !plainText(key, maxSSHKeyBytes, "") {
		return fmt.Sprintf("must be one line of at most %d KiB without control characters, the content of a .pub file", maxSSHKeyBytes>>10)
	}
	words := strings.Fields(key)
	if len(words) < 2 || !slices.Contains(sshKeyTypes, words[0]) {
		return "must be a public key, without options before it: " + strings.Join(sshKeyTypes, ", ") + ", then the key in base64, then a comment if there is one"
	}
	blob, err := base64.StdEncoding.DecodeString(words[1])
	if err != nil {
		return "the word after " + words[0] + " is not base64"
	}
	// A key is a row of strings, each after its length (RFC 4253, section 6.6);
	// the first is its type again.
	for n := 0; len(blob) > 0; n++ {
		if len(blob) < 4 || uint64(len(blob)-4) < uint64(binary.BigEndian.Uint32(blob)) {
			return "the key is cut off"
		}
		size := 4 + int(binary.BigEndian.Uint32(blob))
		if n == 0 && string(blob[4:size]) != words[0] {
			return "the key is not of the type " + words[0] + " that is before it"
		}
		if n == 0 && size == len(blob) {
			return "the key is cut off"
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
	Attached   bool              // the drive with the seed is there
	Files      map[string]string // of the seed, by name, as they are made at the next start
	// Guest is what cloud-init in the guest says; nil if it cannot be asked.
	Guest   *CloudInitStatus
	Version Version // of the VM
}

// A CloudInitStatus is what cloud-init in a guest says of itself.
type CloudInitStatus struct {
	Status string // "done", "running", "error", "disabled" and others; [CloudInitAbsent] if there is none
	Detail string
	Errors []string
}

// CloudInitAbsent is the status of a guest that has no cloud-init.
const CloudInitAbsent = "absent"

// Finished reports whether cloud-init has nothing more to do, and how it has failed.
func (s CloudInitStatus) Finished(id string) (bool, error) {
	switch s.Status {
	case "done", "disabled", CloudInitAbsent:
		return true, nil
	case "error":
		return false, &Fault{Code: CodeGuestRefused, Detail: fmt.Sprintf("cloud-init of VM %s has failed: %s", id, Printable(strings.Join(s.Errors, "; "))),
			Hint: "see /var/log/cloud-init.log in the guest"}
	}
	return false, nil
}
