package vm

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"strings"
)

// Limits of the parts that a [DataSummary] names. Parts beyond them are left out.
const (
	maxParts     = 64
	maxPartDepth = 4 // of MIME messages in MIME messages
	maxPartName  = 128
)

// A DataSummary describes a piece of cloud-init data for callers that may not read it.
type DataSummary struct {
	SizeBytes int
	SHA256    string // in hexadecimal
	// Parts has a name for each part of a MIME message: its file name, or its content
	// type if it has no file name. Data in another format have one part, named by the mark
	// that their first line begins with, such as "#cloud-config", or none without a mark.
	Parts []string
}

// SummarizeData returns the summary of user data, vendor data, network configuration or
// a file of a seed. The parts of a MIME message that cannot be parsed are left out.
func SummarizeData(data string) DataSummary {
	sum := sha256.Sum256([]byte(data))
	summary := DataSummary{SizeBytes: len(data), SHA256: hex.EncodeToString(sum[:])}
	switch mark := markOf(data); mark {
	case "":
	case markMIME:
		message, err := mail.ReadMessage(strings.NewReader(strings.TrimLeft(data, " \t\r\n")))
		if err == nil {
			summary.addParts(textproto.MIMEHeader(message.Header), message.Body, maxPartDepth)
		}
	default:
		summary.Parts = []string{mark}
	}
	return summary
}

// addParts adds the names of the parts of a MIME entity, which is one part itself unless
// it is a multipart message.
func (s *DataSummary) addParts(header textproto.MIMEHeader, body io.Reader, depth int) {
	if len(s.Parts) == maxParts || depth == 0 {
		return
	}
	kind, params, err := mime.ParseMediaType(cmp.Or(header.Get("Content-Type"), "text/plain"))
	if err != nil {
		kind, params = "text/plain", nil // as in RFC 2045, 5.2
	}
	if !strings.HasPrefix(kind, "multipart/") || params["boundary"] == "" {
		_, disposition, _ := mime.ParseMediaType(header.Get("Content-Disposition"))
		s.Parts = append(s.Parts, partName(cmp.Or(disposition["filename"], params["name"], kind)))
		return
	}
	parts := multipart.NewReader(body, params["boundary"])
	for {
		part, err := parts.NextRawPart()
		if err != nil {
			return
		}
		s.addParts(part.Header, part, depth-1)
	}
}

// partName returns the name of a part as one printable line of at most maxPartName
// characters.
func partName(name string) string {
	runes := []rune(Printable(name))
	return string(runes[:min(len(runes), maxPartName)])
}
