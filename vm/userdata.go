package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// The marks by which cloud-init detects the type of user data: the first line begins with one,
// in upper or lower case.
const (
	markConfig   = "#cloud-config"
	markArchive  = "#cloud-config-archive"
	markPatch    = "#cloud-config-jsonp"
	markTemplate = "## template: jinja"
	markScript   = "#!"
	markMIME     = "MIME-Version: or Content-Type: multipart/"
)

// dataMarks lists the marks. A mark that begins with another one is listed before it.
var dataMarks = []string{
	markArchive,
	markPatch,
	markConfig,
	markScript,
	"#include-once",
	"#include",
	"#cloud-boothook",
	"#part-handler",
	markTemplate,
}

// mimeStart matches the first line of a MIME message.
var mimeStart = regexp.MustCompile(`(?i)^(mime-version:|content-type:\s*multipart/)`)

// headerLine matches a line with a header.
var headerLine = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]*:`)

// markOf returns the mark that data begins with, or "" for none. Like cloud-init it skips white
// space before the mark. Unlike cloud-init it requires white space or the end of the line after
// the mark, so that a typo such as "#cloud-configuration" is an error.
func markOf(data string) string {
	line := firstLine(data)
	for _, mark := range dataMarks {
		if len(line) < len(mark) || !strings.EqualFold(line[:len(mark)], mark) {
			continue
		}
		if rest := line[len(mark):]; mark == markScript || rest == "" || rest[0] == ' ' || rest[0] == '\t' {
			return mark
		}
	}
	if mimeStart.MatchString(line) || headerLine.MatchString(line) && isMIME(data) {
		return markMIME
	}
	return ""
}

// firstLine returns the first line of data that is not empty, without surrounding white space.
func firstLine(data string) string {
	line, _, _ := strings.Cut(strings.TrimLeftFunc(data, unicode.IsSpace), "\n")
	return strings.TrimRightFunc(line, unicode.IsSpace)
}

// isMIME reports whether cloud-init treats data as a MIME message: it searches the first 4096
// bytes for the header.
func isMIME(data string) bool {
	return strings.Contains(strings.ToLower(data[:min(len(data), 4096)]), "mime-version:")
}

// checkText returns a [Fault] of code [CodeInvalid] if text is longer than limit bytes or not text.
func checkText(field, text string, limit int) error {
	if len(text) > limit {
		return InvalidField(field, "must be at most %d KiB", limit>>10)
	}
	if !isText(text) {
		return InvalidField(field, "must be UTF-8 text without NUL, not compressed and not base64-encoded")
	}
	return nil
}

// checkUserData returns a [Fault] of code [CodeInvalid] if data is not valid user data or vendor
// data: if cloud-init would drop it or a part of it. Empty data is valid.
func checkUserData(field, data string) error {
	if data == "" {
		return nil
	}
	if err := checkText(field, data, maxUserData); err != nil {
		return err
	}
	mark := markOf(data)
	if mark == "" {
		line := []rune(firstLine(data))
		return InvalidField(field,
			"begins with %q, which cloud-init does not recognize: the first line must begin with %s or %s",
			string(line[:min(len(line), 40)]), strings.Join(dataMarks, ", "), markMIME)
	}
	err := checkMarked(mark, data)
	if err != nil {
		return InvalidField(field, "%v", err)
	}
	return nil
}

// checkMarked checks data that begins with a mark.
func checkMarked(mark, data string) error {
	switch {
	case mark == markMIME:
		return checkMessage(data)
	case isMIME(data) && !isASCII(data):
		return errors.New("has MIME-Version: in the first 4096 bytes, so that cloud-init takes it for a MIME message " +
			"and changes characters that are not ASCII: move that text further down, or encode it")
	}
	return checkTyped(typeOfMark[mark], data)
}

// The content types of user data. cloud-init drops a part of another type, unless a part
// handler before it handles that type.
const (
	typeConfig   = "text/cloud-config"
	typeArchive  = "text/cloud-config-archive"
	typePatch    = "text/cloud-config-jsonp"
	typeScript   = "text/x-shellscript"
	typeBoothook = "text/cloud-boothook"
	typeHandler  = "text/part-handler"
	typeInclude  = "text/x-include-url"
	typeOnce     = "text/x-include-once-url"
	typeTemplate = "text/jinja2"
	typePlain    = "text/plain"
)

// contentTypes are the types that cloud-init handles itself.
var contentTypes = []string{
	typeConfig,
	typeArchive,
	typePatch,
	typeScript,
	typeScript + "-per-boot",
	typeScript + "-per-instance",
	typeScript + "-per-once",
	typeBoothook,
	typeHandler,
	typeInclude,
	typeOnce,
	typeTemplate,
}

// typeOfMark has the content type of data that begins with a mark.
var typeOfMark = map[string]string{
	markArchive:       typeArchive,
	markPatch:         typePatch,
	markConfig:        typeConfig,
	markScript:        typeScript,
	"#include-once":   typeOnce,
	"#include":        typeInclude,
	"#cloud-boothook": typeBoothook,
	"#part-handler":   typeHandler,
	markTemplate:      typeTemplate,
}

// checkTyped returns an error if cloud-init would drop text, a part of the given content type.
func checkTyped(contentType, text string) error {
	switch contentType {
	case typeConfig:
		return checkConfig(text)
	case typeArchive:
		return checkArchive(text)
	case typePatch:
		return checkPatch(text)
	case typeInclude, typeOnce:
		return checkInclude(text)
	case typeTemplate:
		return checkTemplate(text)
	}
	if slices.Contains(contentTypes, contentType) {
		return nil
	}
	return fmt.Errorf("cloud-init does not know the content type %.60q: it must be one of %s",
		contentType, strings.Join(contentTypes, ", "))
}

// checkConfig checks a #cloud-config document.
func checkConfig(text string) error {
	n, err := parseYAML(text)
	if err != nil {
		return err
	}
	if n.Kind != yaml.MappingNode || yamlTag(n) != "map" {
		return lineFaultf(n.Line, "the document must be a mapping")
	}
	for _, key := range []string{"merge_how", "merge_type"} {
		if how := valueOf(n, key); how != nil {
			return checkMerging(how)
		}
	}
	return nil
}

// mergerSyntax matches the way of merging in a text.
var mergerSyntax = regexp.MustCompile(`^\s*(dict|list|str)\([^)]*\)\s*(\+\s*(dict|list|str)\([^)]*\)\s*)*$`)

// checkMerging checks the way in which a #cloud-config document is merged with others.
func checkMerging(n *yaml.Node) error {
	ok := false
	switch n.Kind {
	case yaml.ScalarNode:
		ok = yamlTag(n) == "null" || yamlTag(n) == "str" && mergerSyntax.MatchString(n.Value)
	case yaml.SequenceNode:
		ok = !slices.ContainsFunc(n.Content, func(e *yaml.Node) bool {
			name, settings := valueOf(resolve(e), "name"), valueOf(resolve(e), "settings")
			return name == nil || settings == nil || settings.Kind != yaml.SequenceNode ||
				!slices.Contains([]string{"dict", "list", "str"}, name.Value)
		})
	}
	if ok {
		return nil
	}
	return lineFaultf(n.Line, "the way of merging must be such as list(append)+dict(recurse_array)+str(), "+
		"or a list of mappings with the keys name and settings")
}

// checkArchive checks a #cloud-config-archive document, a list of parts.
func checkArchive(text string) error {
	n, err := parseYAML(text)
	if err != nil {
		return err
	}
	if n.Kind != yaml.SequenceNode {
		return lineFaultf(n.Line, "the document must be a list")
	}
	if len(n.Content) == 0 {
		return lineFaultf(n.Line, "the list must have an entry")
	}
	handled := false
	for i, e := range n.Content {
		if e = resolve(e); !handled {
			if handled, err = checkEntry(e); err != nil {
				return fmt.Errorf("entry %d, at line %d: %w", i+1, e.Line, err)
			}
		}
	}
	return nil
}

// checkEntry checks an entry of an archive. It reports whether the entry is a part handler.
func checkEntry(n *yaml.Node) (isHandler bool, err error) {
	content, contentType := n, ""
	if n.Kind == yaml.MappingNode {
		content = valueOf(n, "content")
		if t := valueOf(n, "type"); t != nil {
			contentType = t.Value
		}
	}
	if content == nil || content.Kind != yaml.ScalarNode || yamlTag(content) != "str" {
		return false, errors.New("must be text, or a mapping with the key content, which is text")
	}
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i].Value, resolve(n.Content[i+1])
		if yamlTag(value) != "str" && key != "launch-index" {
			return false, lineFaultf(value.Line, "the value of %.40s must be text", key)
		}
	}
	if contentType == "" {
		if contentType = typeOfMark[markOf(content.Value)]; contentType == "" {
			contentType = typeConfig
		}
	}
	if contentType == typeArchive || contentType == typeInclude || contentType == typeOnce {
		return false, fmt.Errorf("an archive cannot contain a part of type %s", contentType)
	}
	return contentType == typeHandler, checkTyped(contentType, content.Value)
}

// checkPatch checks a #cloud-config-jsonp document, a JSON patch (RFC 6902).
func checkPatch(text string) error {
	text = strings.TrimLeftFunc(text, unicode.IsSpace)
	if len(text) >= len(markPatch) && strings.EqualFold(text[:len(markPatch)], markPatch) {
		text = text[len(markPatch):]
	}
	var ops []map[string]any
	if err := json.Unmarshal([]byte(text), &ops); err != nil {
		return fmt.Errorf("must be a JSON patch, a list of objects, after the first line: %v", err)
	}
	for i, op := range ops {
		needs := map[string][]string{
			"add": {"value"}, "replace": {"value"}, "test": {"value"},
			"move": {"from"}, "copy": {"from"}, "remove": nil,
		}
		kind, _ := op["op"].(string)
		members, known := needs[kind]
		if !known {
			return fmt.Errorf("operation %d: op must be add, remove, replace, move, copy or test", i+1)
		}
		for _, member := range append([]string{"path"}, members...) {
			v, ok := op[member]
			at, isText := v.(string)
			if !ok || member != "value" && (!isText || at != "" && at[0] != '/') {
				return fmt.Errorf("operation %d: %s must be given, and paths begin with /", i+1, member)
			}
		}
	}
	if len(ops) > 0 && ops[0]["op"] != "add" {
		return errors.New("operation 1 must be add: the configuration is empty before it")
	}
	return nil
}

// includeMark matches the mark on a line of a list of addresses.
var includeMark = regexp.MustCompile(`(?i)^#include(-once)?`)

// checkInclude checks a list of addresses.
func checkInclude(text string) error {
	number := 0
	for line := range strings.Lines(text) {
		number++
		address := strings.TrimSpace(includeMark.ReplaceAllString(line, ""))
		if address == "" || address[0] == '#' {
			continue
		}
		u, err := url.Parse(address)
		if err != nil || !slices.Contains([]string{"http", "https", "ftp", "file"}, strings.ToLower(u.Scheme)) {
			return lineFaultf(number, "%.60q must be an address that begins with http:// or https://", address)
		}
	}
	return nil
}
