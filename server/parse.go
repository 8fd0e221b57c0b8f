package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"

	"vmand/vm"
)

const (
	// maxDepth is the maximum nesting of JSON: far above every schema, far below a
	// depth that needs much stack.
	maxDepth = 32
	// maxUnknown is how many unknown members of one object are reported.
	maxUnknown = 8
	// maxSkipped is how many tokens are read that the schema does not expect.
	maxSkipped = 1000
)

// A parser decodes a JSON value by its schema, and stops where the value exceeds it: at
// the first item above maxItems, at the first unknown member of an object above
// maxUnknown, or after maxSkipped tokens below values of a wrong type. So the time, the
// memory and the number of faults of a body are bounded by the schema and not by the
// body.
type parser struct {
	d       *json.Decoder
	skipped int
	faults  []vm.FieldFault // why it stopped
}

// errStop ends the parsing of a value. The parser has the fault.
var errStop = errors.New("the value exceeds its schema")

// parseJSON decodes the JSON value in data into maps, slices, strings, booleans, nil
// and [json.Number]. If the value exceeds the schema, it returns the fault. It is
// stricter than encoding/json: it rejects duplicate member names, invalid UTF-8 and
// data after the value, since parsers interpret them differently (RFC 8259, 4 and 8.1).
func parseJSON(data []byte, schema *openapi3.Schema) (any, []vm.FieldFault, error) {
	if !utf8.Valid(data) {
		return nil, nil, malformed("the body is not valid UTF-8")
	}
	p := parser{d: json.NewDecoder(bytes.NewReader(data))}
	p.d.UseNumber()
	v, err := p.value(schema, nil)
	switch {
	case errors.Is(err, errStop):
		return nil, p.faults, nil
	case err != nil:
		return nil, nil, err
	}
	if _, err := p.d.Token(); !errors.Is(err, io.EOF) {
		return nil, nil, malformed("the body has data after the JSON value, at byte %d", p.d.InputOffset())
	}
	return v, p.faults, nil
}

func malformed(format string, args ...any) error {
	return &vm.Fault{Code: codeMalformed, Detail: fmt.Sprintf(format, args...)}
}

// value decodes the next value, which is at path. Without a schema it is an unknown
// member. If the schema does not allow an object or a list there, value returns an
// empty one, so that the validation reports the type.
func (p *parser) value(schema *openapi3.Schema, path []string) (any, error) {
	t, err := p.token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('{'):
		if schema == nil || !schema.Type.Includes(openapi3.TypeObject) {
			return map[string]any{}, p.skip(path)
		}
		return p.object(schema, path)
	case json.Delim('['):
		if schema == nil || !schema.Type.Includes(openapi3.TypeArray) {
			return []any{}, p.skip(path)
		}
		return p.array(schema, path)
	}
	return t, nil
}

// object decodes the members of an object and its closing bracket.
func (p *parser) object(schema *openapi3.Schema, path []string) (any, error) {
	object, unknown := map[string]any{}, 0
	for p.d.More() {
		t, err := p.token()
		if err != nil {
			return nil, err
		}
		name, _ := t.(string) // the decoder accepts only strings as names
		if _, twice := object[name]; twice {
			return nil, malformed("an object has a duplicate member name, at byte %d", p.d.InputOffset())
		}
		member := memberOf(schema, name)
		if member == nil {
			unknown++
		}
		switch {
		case unknown > maxUnknown:
			return nil, p.stop(path, "has more than %d unknown properties; the first ones are %s", maxUnknown,
				strings.Join(unknownOf(schema, object), ", "))
		case schema.MaxProps != nil && uint64(len(object)) == *schema.MaxProps:
			return nil, p.stop(path, "must have at most %d properties", *schema.MaxProps)
		}
		if object[name], err = p.value(member, extend(path, name)); err != nil {
			return nil, err
		}
	}
	return object, p.end()
}

// memberOf returns the schema of a member, nil if the member is unknown.
func memberOf(schema *openapi3.Schema, name string) *openapi3.Schema {
	if ref := schema.Properties[name]; ref != nil {
		return ref.Value
	}
	if ref := schema.AdditionalProperties.Schema; ref != nil {
		return ref.Value
	}
	return nil
}

// array decodes the items of a list and its closing bracket.
func (p *parser) array(schema *openapi3.Schema, path []string) (any, error) {
	array := []any{}
	for i := 0; p.d.More(); i++ {
		if schema.MaxItems != nil && uint64(i) == *schema.MaxItems {
			return nil, p.stop(path, "must have at most %d items", *schema.MaxItems)
		}
		v, err := p.value(schema.Items.Value, extend(path, fmt.Sprint(i)))
		if err != nil {
			return nil, err
		}
		array = append(array, v)
	}
	return array, p.end()
}

// unknownOf returns the names of the unknown members of an object, sorted.
func unknownOf(schema *openapi3.Schema, object map[string]any) []string {
	var names []string
	for _, name := range sortedNames(object) {
		if memberOf(schema, name) == nil {
			names = append(names, short(name))
		}
	}
	return names
}

// skip reads the rest of an object or a list at path, which has begun.
func (p *parser) skip(path []string) error {
	for open := 1; open > 0; p.skipped++ {
		t, err := p.token()
		switch {
		case err != nil:
			return err
		case t == json.Delim('{') || t == json.Delim('['):
			open++
		case t == json.Delim('}') || t == json.Delim(']'):
			open--
		}
		if len(path)+open > maxDepth {
			return malformed("the body is nested deeper than %d levels", maxDepth)
		}
		if p.skipped == maxSkipped {
			return p.stop(path, "must not be an object or a list")
		}
	}
	return nil
}

// extend returns path with one more element. It copies path, which the caller goes on
// to extend.
func extend(path []string, name string) []string {
	return append(path[:len(path):len(path)], name)
}

// stop records the fault of the value at path and returns errStop.
func (p *parser) stop(path []string, format string, args ...any) error {
	p.faults = []vm.FieldFault{{Field: pointer(path), Detail: fmt.Sprintf(format, args...)}}
	return errStop
}

// end reads a closing bracket.
func (p *parser) end() error {
	_, err := p.token()
	return err
}

func (p *parser) token() (json.Token, error) {
	t, err := p.d.Token()
	switch {
	case err == nil:
		return t, nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, malformed("the body is not JSON: unexpected end")
	}
	return nil, malformed("the body is not JSON, at byte %d", p.d.InputOffset())
}
