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

// masked returns c as it may be shown: without the password hashes, and without
// what looks like a secret in the data.
func (c CloudInit) masked() CloudInit {
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

// maskSeedFile returns a file of [seedFiles] as it may be shown.
func maskSeedFile(name string, content []byte) string {
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

// secretWords are what is in the name of a secret.
const secretWords = `passwd|password|passphrase|secret|token|credential|authorization|` +
	`(?:private|access|api|auth|encryption|registration|activation|validation|signing|shared|account|preshared)[_-]?key`

var (
	secretName = regexp.MustCompile(`(?i)` + secretWords + `|^psk$|[_-]psk$|[_-]private$`)

	// In text of any kind:
	assignedSecret = regexp.MustCompile(`(?im)([\w.-]*(?:` + secretWords + `)[\w.-]*)(["'\]}]*[ \t]*[:=]+[ \t]*)(\S.*)$`)
	secretOption   = regexp.MustCompile(`(?im)(--?[\w-]*(?:` + secretWords + `)[\w-]*[ \t]+)(\S.*)$`)
	pipedPassword  = regexp.MustCompile(`(?m)\S.*(\|[ \t]*(?:sudo[ \t]+)?(?:/usr/sbin/)?chpasswd\b)`)
	urlPassword    = regexp.MustCompile(`(://[^/\s:@]*:)[^\s@/]+@`)
	cryptHash      = regexp.MustCompile(`\$(?:1|2[aby]|5|6|g?y)\$[./0-9A-Za-z=$,!-]+`)
	pemKey         = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z0-9 ]*-----`)
)

// isSecretName reports whether a key of that name has a secret as its value.
func isSecretName(name string) bool {
	switch strings.ToLower(strings.ReplaceAll(name, "-", "_")) {
	case "chpasswd", "lock_passwd": // a mapping of which some is secret; a bool
		return false
	}
	return secretName.MatchString(name)
}

// maskLines masks, in text of any kind, what is assigned to a name of a secret,
// to the end of the line, hashes of passwords, and private keys.
func maskLines(text string) string {
	text = maskPEM(text)
	text = pipedPassword.ReplaceAllString(text, masked+" $1")
	text = assignedSecret.ReplaceAllStringFunc(text, func(s string) string {
		m := assignedSecret.FindStringSubmatch(s)
		if !isSecretName(m[1]) || strings.Trim(m[3], `"', `) == masked || blockHeader.MatchString(m[3]) {
			return s
		}
		return m[1] + m[2] + masked
	})
	text = secretOption.ReplaceAllString(text, "${1}"+masked)
	text = urlPassword.ReplaceAllString(text, "${1}"+masked+"@")
	return cryptHash.ReplaceAllLiteralString(text, masked)
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

// outlineKey is what looks like a key of a mapping, wherever in a line.
var outlineKey = regexp.MustCompile(`([\w.-]+)["']?[ \t]*[:=]`)

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
		for _, m := range outlineKey.FindAllStringSubmatchIndex(line, -1) {
			if name := line[m[2]:m[3]]; isSecretName(name) || strings.EqualFold(name, "chpasswd") {
				below = indent
				if v := strings.TrimSpace(line[m[1]:]); v != "" && !blockHeader.MatchString(v) {
					lines[i] = line[:m[1]] + maskWords(line[m[1]:])
				}
				break
			}
		}
	}
	return maskLines(strings.Join(lines, ""))
}

var blockHeader = regexp.MustCompile(`^[|>][-+0-9]*$`)

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
