package vm

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"net/textproto"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxMessageParts bounds the parts of a MIME message.
const maxMessageParts = 256

// A messageChecker checks the parts of a MIME message in their order.
type messageChecker struct {
	parts   int  // without containers
	handled bool // a part handler was found, which can handle other content types
}

// checkMessage returns an error if cloud-init would drop a MIME message or one of its parts.
func checkMessage(data string) error {
	switch {
	case strings.TrimLeft(data[:1], " \t\r\n") == "":
		return lineFaultf(1, "a MIME message must begin with its first header, without empty lines or spaces before it")
	case !isMIME(data):
		return errors.New(
			"must have the header MIME-Version: in the first 4096 bytes, by which cloud-init recognizes a MIME message")
	}
	message, err := mail.ReadMessage(strings.NewReader(data))
	if err != nil {
		return fmt.Errorf("the headers of the MIME message cannot be read: %v", err)
	}
	c := &messageChecker{}
	if err := c.check(textproto.MIMEHeader(message.Header), message.Body, "the MIME message", maxPartDepth); err != nil {
		return err
	}
	if c.parts == 0 {
		return errors.New("the MIME message has no parts")
	}
	return nil
}

// check checks a MIME entity. name is its name in an error.
func (c *messageChecker) check(header textproto.MIMEHeader, body io.Reader, name string, depth int) error {
	kind, params, err := mime.ParseMediaType(cmp.Or(header.Get("Content-Type"), typePlain))
	if err != nil {
		return fmt.Errorf("%s: the Content-Type %.60q cannot be read: %v", name, header.Get("Content-Type"), err)
	}
	if !strings.HasPrefix(kind, "multipart/") {
		if c.parts++; c.parts > maxMessageParts {
			return fmt.Errorf("the MIME message has more than %d parts", maxMessageParts)
		}
		if err := c.checkPart(kind, header, body); err != nil {
			return fmt.Errorf("%s (%s): %w", name, kind, err)
		}
		return nil
	}
	switch {
	case depth == 0:
		return fmt.Errorf("the MIME message has messages in messages deeper than %d levels", maxPartDepth)
	case params["boundary"] == "":
		return fmt.Errorf("%s: the Content-Type %s must have a boundary", name, kind)
	}
	reader := multipart.NewReader(body, params["boundary"])
	for n := 1; ; n++ {
		part, err := reader.NextRawPart()
		switch {
		case errors.Is(err, io.EOF) && n > 1:
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("%s: the boundary --%.70s never comes, or no part follows it", name, params["boundary"])
		case err != nil:
			return fmt.Errorf("%s is cut off or malformed after part %d: it must end with the line --%.70s--: %v",
				name, n-1, params["boundary"], err)
		}
		if err := c.check(part.Header, part, fmt.Sprintf("part %d", n), depth-1); err != nil {
			return err
		}
	}
}

// compressedTypes are the content types that cloud-init decompresses.
var compressedTypes = map[string]bool{
	"application/gzip":              true,
	"application/gzip-compressed":   true,
	"application/gzipped":           true,
	"application/x-compress":        true,
	"application/x-compressed":      true,
	"application/x-gunzip":          true,
	"application/x-gzip":            true,
	"application/x-gzip-compressed": true,
}

// checkPart checks a part that is not a message.
func (c *messageChecker) checkPart(kind string, header textproto.MIMEHeader, body io.Reader) error {
	text, err := decodePart(header.Get("Content-Transfer-Encoding"), body)
	if err != nil {
		return err
	}
	if compressedTypes[kind] {
		expanded, err := gunzip([]byte(text), maxUserData)
		if err != nil {
			return err
		}
		kind, text = typePlain, string(expanded)
	}
	if !utf8.ValidString(text) {
		return errors.New("must be UTF-8 text")
	}
	if mark := typeOfMark[markOf(text)]; (kind == typePlain || kind == typeScript || kind == "text/x-not-multipart") && mark != "" {
		kind = mark
	}
	how := cmp.Or(header.Get("Merge-Type"), header.Get("X-Merge-Type"))
	switch {
	case kind == typePlain:
		return fmt.Errorf("has no content type, and its first line begins with none of %s", strings.Join(dataMarks, ", "))
	case kind == typeConfig && how != "" && !mergerSyntax.MatchString(how):
		return errors.New("the header Merge-Type must be such as list(append)+dict(recurse_array)+str()")
	case kind == typeHandler:
		c.handled = true
	case c.handled && !slices.Contains(contentTypes, kind):
		return nil
	}
	return checkTyped(kind, text)
}

// decodePart returns the content of a part. Python's parser changes text that is neither ASCII
// nor encoded.
func decodePart(encoding string, body io.Reader) (string, error) {
	raw, err := io.ReadAll(body)
	if err != nil {
		return "", fmt.Errorf("is cut off: %v", err)
	}
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "base64":
		text := strings.Join(strings.Fields(string(raw)), "")
		decoded, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return "", fmt.Errorf("is not valid base64: %v", err)
		}
		return string(decoded), nil
	case "quoted-printable":
		decoded, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(string(raw))))
		if err != nil {
			return "", fmt.Errorf("is not valid quoted-printable text: %v", err)
		}
		return string(decoded), nil
	case "", "7bit", "8bit", "binary":
		if !isASCII(string(raw)) {
			return "", errors.New("has characters that are not ASCII, which cloud-init changes: " +
				"encode the part with Content-Transfer-Encoding: base64")
		}
		return string(raw), nil
	}
	return "", fmt.Errorf("the Content-Transfer-Encoding %.40q must be base64, quoted-printable, 7bit or 8bit", encoding)
}
