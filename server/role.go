package server

import (
	"net/http"

	"vmand/vm"
)

// needs returns the role that an operation of the contract needs: viewer to read,
// operator to change something and to read files of a guest or the content of an image.
func needs(operationID, method string) vm.Role {
	switch operationID {
	case "readFile", "readImage":
		return vm.RoleOperator
	case "createConsoleTicket": // the handler checks the role for writing
		return vm.RoleViewer
	}
	if method == http.MethodGet {
		return vm.RoleViewer
	}
	return vm.RoleOperator
}

// permit returns a fault if the role of c does not include need.
func permit(c vm.Caller, need vm.Role) error {
	if c.Role.May(need) {
		return nil
	}
	return &vm.Fault{
		Code:   codeForbidden,
		Detail: "the request needs the role " + string(need),
		Hint:   "use a token with another role",
	}
}
