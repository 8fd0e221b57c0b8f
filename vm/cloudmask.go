package vm

import (
	"encoding/base64"
	"mime"
	"net/mail"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// masked stands for what must not be shown.
const masked = "***"

// Masked returns c as it may be shown: without the password hashes, and without
// what looks like a secret in the data.
func (c CloudInit) Masked() CloudInit {
	if c.PasswordHash != "" {
		c.PasswordHash = masked
	}
	c.Users = slices.Clone(c.Users)
	for i := range c.Users {
		if c.Users[i].PasswordHash != "" {
			c.Users[i].PasswordHash = masked
		}
	}
	c.UserData, c.VendorData, c.NetworkConfig = maskData(c.UserData), maskData(c.VendorData), maskConfig(c.NetworkConfig)
	return c
}

// MaskSeedFile returns a file of [seedFiles] as it may be shown.
func MaskSeedFile(name string, content []byte) string {
	if name == "user-data" || name == "vendor-data" {
		return maskData(string(content))
	}
	return maskConfig(string(content))
}

// maxNesting is how deep messages within messages are looked into.
const maxNesting = 4

// maskData masks user data or vendor data.
func maskData(data string) string { return maskNested(data, maxNesting) }

func maskNested(data string, depth int) string {
	switch mark := markOf(data); {
	case mark == markMIME, mark == "" && saysMIME(data):
		return maskMessage(data, depth)
	case mark == markConfig:
		return maskConfig(data)
	case mark == markTemplate:
		// It may be YAML as it is; if it is of another kind, so is its secret.
		if _, rest, _ := strings.Cut(strings.TrimLeftFunc(data, unicode.IsSpace), "\n"); markOf(rest) == markConfig {
			return maskConfig(data)
		}
		return maskOutline(data)
	case mark == markArchive, mark == markPatch, mark == "":
		if text, ok := maskYAML(data, mark == markPatch); ok {
			data = text
		}
		return maskOutline(data) // there are documents within strings
	default:
		return maskLines(data)
	}
}

// maskConfig masks a YAML document.
func maskConfig(text string) string {
	if text == "" {
		return ""
	}
	if out, ok := maskYAML(text, false); ok {
		return out
	}
	return maskOutline(text)
}

// secretWords are what is in the name of a secret, with nothing or an underscore
// where these have an underscore.
var secretWords = func() (words []string) {
	for _, w := range []string{"passwd", "password", "passphrase", "secret", "token", "credential", "authorization",
		"private_key", "access_key", "api_key", "auth_key", "encryption_key", "registration_key", "activation_key",
		"validation_key", "signing_key", "shared_key", "account_key"} {
		words = append(words, w)
		if plain := strings.ReplaceAll(w, "_", ""); plain != w {
			words = append(words, plain)
		}
	}
	return words
}()

// isSecretName reports whether a key of that name has a secret as its value.
func isSecretName(name string) bool {
	name = strings.ToLower(strings.ReplaceAll(name, "-", "_"))
	switch name {
	case "chpasswd", "lock_passwd", "nopasswd": // a mapping of which some is secret; a bool; a word of sudoers(5)
		return false
	case "psk", "pass":
		return true
	}
	return strings.HasSuffix(name, "_psk") || strings.HasSuffix(name, "_pass") || strings.HasSuffix(name, "pwd") || strings.HasSuffix(name, "_private") ||
		slices.ContainsFunc(secretWords, func(w string) bool { return strings.Contains(name, w) })
}

var (
	pipedPassword = regexp.MustCompile(`\S.*(\|[ \t]*(?:sudo[ \t]+)?(?:/usr/sbin/)?chpasswd\b)`)
	urlPassword   = regexp.MustCompile(`(://[^/\s:@]*:)[^\s@/]+@`)
	cryptHash     = regexp.MustCompile(`\$(?:1|2[aby]|5|6|g?y)\$[./0-9A-Za-z=$,!-]+`)
	pemKey        = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z0-9 ]*-----`)
	blockHeader   = regexp.MustCompile(`^[|>][-+0-9]*$`)
)

// maskLines masks, in text of any kind, what is assigned to a name of a secret,
// to the end of the line, passwords in URLs and hashes of passwords, and private
// keys.
func maskLines(text string) string {
	lines := strings.SplitAfter(maskPEM(text), "\n")
	for i, line := range lines {
		if strings.Contains(line, "chpasswd") {
			line = pipedPassword.ReplaceAllString(line, masked+" $1")
		}
		if _, at := secretIn(line, isSecretName); at >= 0 {
			if value := strings.TrimSpace(line[at:]); strings.Trim(value, `"', `) != masked && !blockHeader.MatchString(value) {
				line = line[:at] + maskWords(line[at:])
			}
		}
		if strings.Contains(line, "://") && strings.Contains(line, "@") {
			line = urlPassword.ReplaceAllString(line, "${1}"+masked+"@")
		}
		if strings.Contains(line, "$") {
			line = cryptHash.ReplaceAllLiteralString(line, masked)
		}
		lines[i] = line
	}
	return strings.Join(lines, "")
}

// secretIn returns the first name in a line for which is says yes, and where what
// follows it begins: after a colon or an equals sign, or the space after an option
// such as --password. Without one at is -1.
func secretIn(line string, is func(string) bool) (name string, at int) {
	for i, next := 0, 0; i < len(line); i = next {
		end := i
		next = i + 1
		switch line[i] {
		case ':', '=':
			end = len(strings.TrimRight(strings.TrimRight(line[:i], " \t"), "\"']}"))
			for next < len(line) && (line[next] == ':' || line[next] == '=') {
				next++
			}
		case ' ', '\t':
			if next == len(line) || line[next] == '-' {
				continue
			}
		default:
			continue
		}
		begin := len(strings.TrimRightFunc(line[:end], inName))
		name = line[begin:end]
		if (strings.HasPrefix(name, "-") || line[i] == ':' || line[i] == '=') && is(name) {
			return name, next
		}
	}
	return "", -1
}

func inName(r rune) bool {
	return r == '_' || r == '-' || r == '.' || unicode.IsLetter(r) || unicode.IsDigit(r)
}

// maskPEM masks private keys line by line. One without an end goes on to the end.
func maskPEM(text string) string {
	var b strings.Builder
	for {
		at := pemKey.FindStringIndex(text)
		if at == nil {
			return b.String() + text
		}
		b.WriteString(text[:at[1]])
		text = text[at[1]:]
		end := strings.Index(text, "-----END")
		if end < 0 {
			end = len(text)
		}
		b.WriteString(maskWords(text[:end]))
		text = text[end:]
	}
}

// maskWords masks each line that is not blank, and keeps its indentation.
func maskWords(text string) string {
	lines := strings.SplitAfter(text, "\n")
	for i, line := range lines {
		body := strings.TrimSpace(line)
		if body == "" || body == masked {
			continue
		}
		indent := line[:strings.Index(line, body)]
		lines[i] = indent + masked + line[len(indent)+len(body):]
	}
	return strings.Join(lines, "")
}

// maskOutline masks what is, or may be, YAML that cannot be read: as maskLines,
// and all that is indented below a name of a secret.
func maskOutline(text string) string {
	lines := strings.SplitAfter(text, "\n")
	below := -1 // indentation of the key whose value goes on; -1: none
	for i, line := range lines {
		body := strings.TrimLeft(line, " \t")
		indent := len(line) - len(body)
		item := below == indent && strings.HasPrefix(body, "-") // of a list, which need not be indented
		if below >= 0 && (strings.TrimSpace(body) == "" || indent > below || item) {
			lines[i] = maskWords(line)
			continue
		}
		below = -1
		if _, at := secretIn(line, func(name string) bool { return isSecretName(name) || strings.EqualFold(name, "chpasswd") }); at >= 0 {
			below = indent
			if v := strings.TrimSpace(line[at:]); !blockHeader.MatchString(v) {
				lines[i] = line[:at] + maskWords(line[at:])
			}
		}
	}
	return maskLines(strings.Join(lines, ""))
}

// maskMessage masks a MIME message, or a part of one.
func maskMessage(text string, depth int) string {
	head, body := cutHeaders(text)
	message, err := mail.ReadMessage(strings.NewReader(strings.TrimLeft(head, "\r\n") + "\r\n\r\n"))
	if err != nil || depth == 0 {
		return head + maskWords(body)
	}
	media, params, err := mime.ParseMediaType(message.Header.Get("Content-Type"))
	if err != nil && message.Header.Get("Content-Type") != "" {
		return head + maskWords(body)
	}
	if strings.HasPrefix(media, "multipart/") {
		return head + maskParts(body, params["boundary"], depth)
	}
	return head + maskBody(body, media, message.Header.Get("Content-Transfer-Encoding"), depth)
}

// cutHeaders cuts text after the blank line that ends its headers.
func cutHeaders(text string) (head, body string) {
	end := 0
	for line := range strings.SplitAfterSeq(text, "\n") {
		end += len(line)
		if strings.TrimRight(line, "\r\n") == "" {
			break
		}
	}
	return text[:end], text[end:]
}

// maskParts masks the parts of a message of many.
func maskParts(body, boundary string, depth int) string {
	if boundary == "" {
		return maskWords(body)
	}
	var b, part strings.Builder
	inside := false
	flush := func() {
		if inside {
			b.WriteString(maskMessage(part.String(), depth-1))
		} else {
			b.WriteString(maskOutline(part.String()))
		}
		part.Reset()
	}
	for line := range strings.SplitAfterSeq(body, "\n") {
		mark := strings.TrimRight(line, " \t\r\n")
		if mark != "--"+boundary && mark != "--"+boundary+"--" {
			part.WriteString(line)
			continue
		}
		flush()
		inside = mark == "--"+boundary
		b.WriteString(line)
	}
	flush()
	return b.String()
}

// maskBody masks the body of a part. What is in base64 stays so.
func maskBody(body, media, encoding string, depth int) string {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "", "7bit", "8bit", "binary":
		if media == "text/cloud-config" {
			return maskConfig(body)
		}
		return maskNested(body, depth-1)
	case "base64":
		data, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(body), ""))
		if err != nil {
			return maskWords(body)
		}
		if media == "text/cloud-config" {
			return base64Lines(maskConfig(string(data)))
		}
		return base64Lines(maskNested(string(data), depth-1))
	}
	return maskWords(body)
}
