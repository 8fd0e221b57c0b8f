package vm

import (
	"fmt"
	"strings"
)

// A CloudInitView is what a guest gets of cloud-init data, with its secrets
// masked, and what cloud-init in the guest says.
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

// Over reports whether cloud-init has nothing more to do, and how it has failed.
func (s CloudInitStatus) Over(id string) (bool, error) {
	switch s.Status {
	case "done", "disabled", CloudInitAbsent:
		return true, nil
	case "error":
		return false, &Fault{Code: CodeGuestRefused, Detail: fmt.Sprintf("cloud-init of VM %s has failed: %s", id, Printable(strings.Join(s.Errors, "; "))),
			Hint: "see /var/log/cloud-init.log in the guest"}
	}
	return false, nil
}
