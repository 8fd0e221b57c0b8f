package vm

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

// A Seed is what is recorded of a VM's cloud-init data.
type Seed struct {
	VMID string
	CloudInit
	// Instance goes up when the guest is to take all of it on anew: it is in the
	// instance id, by which cloud-init knows whether it has been here before.
	Instance int
}
