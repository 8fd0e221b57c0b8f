package vm

// An Answer says what the answer to a request shows, once the operation that the
// request began has succeeded.
type Answer string

// The kinds of answers.
const (
	AnswerResource      Answer = "resource"       // the operation's resource as it is now
	AnswerCreated       Answer = "created"        // the same, as one that was created
	AnswerTarget        Answer = "target"         // what [Operation].Target names
	AnswerCreatedTarget Answer = "created-target" // the same, as one that was created
	AnswerOperation     Answer = "operation"      // the operation itself
	AnswerNothing       Answer = "nothing"        // no body
)
