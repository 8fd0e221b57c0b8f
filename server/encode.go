package server

import (
	"strconv"
	"time"
	"unicode/utf8"

	"vmand/vm"
)

// An appender writes its own JSON.
type appender interface {
	appendJSON(b []byte) []byte
}

// encode appends the JSON of v to what e has gathered.
func (e *encoder) encode(v any) error {
	if a, ok := v.(appender); ok {
		e.buf.Write(a.appendJSON(e.buf.AvailableBuffer()))
		return nil
	}
	return e.json.Encode(v)
}

// A wireVM is a VM as the API spells it: byte for byte what encoding/json makes
// of the [openapi.VM] with its values, which a test asserts. It is written by
// hand because VMs are what is read most, and the general encoder takes longer
// over a list of them than the database does.
type wireVM vm.VM

func (v *wireVM) appendJSON(b []byte) []byte {
	b = appendNullable(append(b, `{"accel":`...), string(v.Accel))
	b = strconv.AppendBool(append(b, `,"autostart":`...), v.Autostart.Enabled)
	b = strconv.AppendInt(append(b, `,"autostart_delay":`...), int64(v.Autostart.Delay/time.Second), 10)
	b = strconv.AppendInt(append(b, `,"autostart_order":`...), int64(v.Autostart.Order), 10)
	b = appendTime(append(b, `,"created_at":`...), v.CreatedAt)
	b = appendString(append(b, `,"description":`...), v.Description)
	b = appendString(append(b, `,"desired_state":`...), string(v.Desired))
	b = appendString(append(b, `,"id":`...), v.ID)
	b = appendLabels(append(b, `,"labels":`...), v.Labels)
	b = appendNullable(append(b, `,"local_ip":`...), v.LocalIP)
	b = appendNullable(append(b, `,"machine_type":`...), v.Machine)
	b = appendNullableTime(append(b, `,"next_restart_at":`...), v.RestartAt)
	b = strconv.AppendInt(append(b, `,"restart_count":`...), int64(v.Restarts), 10)
	b = appendString(append(b, `,"restart_policy":`...), string(v.Restart))
	b = strconv.AppendFloat(append(b, `,"root_disk_size":`...), gib(v.Root.SizeMiB), 'f', -1, 64)
	b = appendNullableTime(append(b, `,"started_at":`...), v.StartedAt)
	b = appendString(append(b, `,"state":`...), string(v.State))
	b = appendNullable(append(b, `,"state_reason":`...), string(v.Reason))
	b = appendNullable(append(b, `,"state_reason_detail":`...), v.ReasonDetail)
	b = appendTime(append(b, `,"updated_at":`...), v.UpdatedAt)
	b = appendString(append(b, `,"uuid":`...), v.UUID)
	b = strconv.AppendInt(append(b, `,"vm_template":{"cpu_count":`...), int64(v.Template.CPUCount), 10)
	b = appendString(append(b, `,"name":`...), v.Template.Name)
	b = strconv.AppendInt(append(b, `,"ram_amount":`...), int64(v.Template.RAMMiB), 10)
	return append(b, "}}\n"...)
}

// appendNullable appends a string, or null for an empty one.
func appendNullable(b []byte, s string) []byte {
	if s == "" {
		return append(b, "null"...)
	}
	return appendString(b, s)
}

// appendString appends a JSON string. What needs no escaping, which is nearly
// everything, is copied.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' || c == 0x7f || c == '<' || c == '>' || c == '&' {
			e := getEncoder()
			defer e.free()
			_ = e.json.Encode(s) // a string can always be encoded
			return append(b, e.buf.Bytes()[:e.buf.Len()-1]...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// appendLabels appends an object in the order of its keys.
func appendLabels(b []byte, labels map[string]string) []byte {
	if len(labels) == 0 {
		return append(b, "{}"...)
	}
	comma := byte('{')
	for _, key := range sortedNames(labels) {
		b = appendString(append(b, comma), key)
		b = appendString(append(b, ':'), labels[key])
		comma = ','
	}
	return append(b, '}')
}

// appendNullableTime appends a time, or null for the zero time.
func appendNullableTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, "null"...)
	}
	return appendTime(b, t)
}

// appendTime appends a time as [openapi.Time] spells it.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	b = appendDigits(append(b, '"'), year, 4)
	b = appendDigits(append(b, '-'), int(month), 2)
	b = appendDigits(append(b, '-'), day, 2)
	b = appendDigits(append(b, 'T'), hour, 2)
	b = appendDigits(append(b, ':'), minute, 2)
	b = appendDigits(append(b, ':'), second, 2)
	b = appendDigits(append(b, '.'), t.Nanosecond()/1e6, 3)
	return append(b, `Z"`...)
}

// appendDigits appends the last width digits of n.
func appendDigits(b []byte, n, width int) []byte {
	var digits [4]byte
	for i := width - 1; i >= 0; i-- {
		digits[i] = byte('0' + n%10)
		n /= 10
	}
	return append(b, digits[:width]...)
}

// rawJSON is JSON that is sent as it is.
type rawJSON []byte

func (r rawJSON) appendJSON(b []byte) []byte { return append(b, r...) }

var (
	_ appender = (*wireVM)(nil)
	_ appender = rawJSON(nil)
)
