package vm

// A Repair is what a settling found and did.
type Repair struct {
	Changed bool
	Was, Is string // the states, before and after
	Detail  string // what was done, in words
}
