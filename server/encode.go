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
	b = appendTime(append(b, `,"created_at":`...), v.CreatedAt)
	b = appendString(append(b, `,"desired_state":`...), string(v.Desired))
	b = appendString(append(b, `,"id":`...), v.ID)
	b = appendNullable(append(b, `,"local_ip":`...), v.LocalIP)
	b = appendNullable(append(b, `,"machine_type":`...), v.Machine)
	b = strconv.AppendFloat(append(b, `,"root_disk_size":`...), gib(v.Root.SizeMiB), 'f', -1, 64)
	b = append(b, `,"started_at":`...)
	if v.StartedAt.IsZero() {
		b = append(b, "null"...)
	} else {
		b = appendTime(b, v.StartedAt)
	}
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

var _ appender = (*wireVM)(nil)
