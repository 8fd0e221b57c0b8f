package qemu

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"vmand/qemu/qmp"
	"vmand/vm"
)

// The recorder keeps 200 messages of at most 2 KiB of each VM: at most 420 KiB, and
// about 10 KiB with usual messages.
const (
	maxMessages = 200
	maxText     = 2 << 10
)

// recorder keeps the last messages of a VM's monitor. It is read only after a
// failure, so it costs a copy of each message and nothing else.
type recorder struct {
	mu       sync.Mutex
	messages []recorded // oldest first
}

// recorded is a message with its id.
type recorded struct {
	vm.Message
	id uint64 // the same for a command and its reply; 0 for an event
}

// trace implements [qmp.Trace]: it records a message.
func (r *recorder) trace(d qmp.Direction, id uint64, line []byte) {
	text := string(line[:min(len(line), maxText)])
	m := recorded{vm.Message{At: time.Now().UTC(), Dir: string(d), Text: strings.ToValidUTF8(text, "")}, id}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.messages) == maxMessages {
		r.messages = slices.Delete(r.messages, 0, 1)
	}
	r.messages = append(r.messages, m)
	if d == qmp.Reply {
		r.forgetRepeated()
	}
}

// forgetRepeated removes the previous exchange with the same query and the same
// answer as the newest exchange. The observer queries every few seconds, and its
// messages would soon fill the recording. r.mu must be held.
func (r *recorder) forgetRepeated() {
	reply := r.messages[len(r.messages)-1]
	command := r.indexOf(string(qmp.Request), reply.id, len(r.messages)-1)
	if command < 0 || len(reply.Text) == maxText || !isQuery(r.messages[command].Text) {
		return
	}
	for i := command - 1; i >= 0; i-- {
		old := r.messages[i]
		if old.Dir != string(qmp.Reply) || old.bare() != reply.bare() {
			continue
		}
		j := r.indexOf(string(qmp.Request), old.id, i)
		if j >= 0 && r.messages[j].bare() == r.messages[command].bare() {
			r.messages = slices.Delete(r.messages, i, i+1)
			r.messages = slices.Delete(r.messages, j, j+1)
			return
		}
	}
}

// indexOf returns the index of the last message before end with this direction and
// id, -1 if there is none.
func (r *recorder) indexOf(dir string, id uint64, end int) int {
	for i := end - 1; i >= 0; i-- {
		if m := r.messages[i]; m.id == id && m.Dir == dir {
			return i
		}
	}
	return -1
}

// bare returns the text without the id.
func (m recorded) bare() string {
	name := `"id":`
	if m.Dir == string(qmp.Reply) {
		name += " " // QEMU writes JSON so
	}
	return strings.Replace(m.Text, fmt.Sprint(name, m.id), "", 1)
}

// isQuery reports whether a command changes nothing.
func isQuery(command string) bool {
	return strings.HasPrefix(command, `{"execute":"query-`) || strings.HasPrefix(command, `{"execute":"qom-list"`)
}

// recording returns the messages, oldest first.
func (r *recorder) recording() []vm.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	messages := make([]vm.Message, len(r.messages))
	for i, m := range r.messages {
		messages[i] = m.Message
	}
	return messages
}
