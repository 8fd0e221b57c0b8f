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

// What is kept of a monitor: 200 messages of at most 2 KiB, so at most 420 KiB
// per VM, and some 10 KiB with what is usually said.
const (
	maxMessages = 200
	maxText     = 2 << 10
)

// recorder keeps the last messages of a VM's monitor. It is a black box: nobody
// reads it until something has gone wrong, so it costs a copy of each message
// and nothing else.
type recorder struct {
	mu       sync.Mutex
	messages []recorded // oldest first
}

type recorded struct {
	vm.Message
	id uint64 // what a command and its reply have in common, 0 for an event
}

// trace is a [qmp.Trace].
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

// forgetRepeated forgets the last time that was asked, and answered, the same as
// in the exchange that ends with the newest message, if that only asked: the
// observer looks every few seconds and would soon have filled the recording
// with nothing. r.mu is held.
func (r *recorder) forgetRepeated() {
	reply := r.messages[len(r.messages)-1]
	command := r.indexOf(string(qmp.Request), reply.id, len(r.messages)-1)
	if command < 0 || len(reply.Text) == maxText || !onlyAsks(r.messages[command].Text) {
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

// indexOf returns where the last message before end with this direction and id
// is, -1 if there is none.
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
		name += " " // QEMU's way of writing JSON
	}
	return strings.Replace(m.Text, fmt.Sprint(name, m.id), "", 1)
}

// onlyAsks reports whether a command changes nothing.
func onlyAsks(command string) bool {
	return strings.HasPrefix(command, `{"execute":"query-`) || strings.HasPrefix(command, `{"execute":"qom-list"`)
}

// recording returns what is kept, oldest first.
func (r *recorder) recording() []vm.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	messages := make([]vm.Message, len(r.messages))
	for i, m := range r.messages {
		messages[i] = m.Message
	}
	return messages
}
