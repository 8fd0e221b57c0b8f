package server

import (
	"net/http"

	"vmand/vm"
)

// needs returns the role that an operation of the specification takes: to look
// for who reads, to operate for who changes something or looks into a guest or an
// image.
func needs(operationID, method string) vm.Role {
	switch operationID {
	case "readFile", "readImage":
		return vm.RoleOperator
	case "createConsoleTicket": // to read, and what it is to type is checked there
		return vm.RoleViewer
	}
	if method == http.MethodGet {
		return vm.RoleViewer
	}
	return vm.RoleOperator
}

// permit refuses a caller whose role does not include the one needed.
func permit(c vm.Caller, need vm.Role) error {
	if c.Role.May(need) {
		return nil
	}
	return &vm.Fault{Code: codeForbidden, Detail: "this needs the role " + string(need), Hint: "use a token with another role"}
}
