package vm

// An Answer is the content of the answer to a request after its operation has succeeded.
type Answer string

// The kinds of answers.
const (
	AnswerResource      Answer = "resource"       // the current state of the operation's resource
	AnswerCreated       Answer = "created"        // the same, with status 201
	AnswerTarget        Answer = "target"         // the device that [Operation].Target names
	AnswerCreatedTarget Answer = "created-target" // the same, with status 201
	AnswerOperation     Answer = "operation"      // the operation itself
	AnswerNothing       Answer = "nothing"        // no body
)
