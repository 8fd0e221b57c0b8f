package server

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
)

// patternWords says in words what each pattern of the contract allows. A test fails for a
// pattern without words.
var patternWords = map[string]string{
	`^((vms|disks):[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?|images:[0-9a-f]{64})$`:                                                                  "vms: or disks: and an id, or images: and 64 hexadecimal digits",
	`^((vms|disks|networks)/[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?|(templates|images)/[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?|images/[0-9a-f]{64})$`: "a resource such as vms/web-1, disks/disk-1, networks/lan, templates/small or images/debian-12",
	`^(ip|agent|cloud-init|port:[1-9][0-9]{0,4})$`:                                                                                            "ip, agent, cloud-init, or port: and a number, such as port:22",
	`^(seed|cd-[1-4])$`: "seed, or cd-1 to cd-4",
	`^(vms|disks):[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`:                     "vms: or disks: and an id, such as disks:disk-1",
	`^(vm|disk|template|image|network|operation|observer|daemon)\.[a-z]*$`: "a type of event such as vm.started, or the beginning of some, such as vm.",
	`^/[^\x00-\x1f\x7f:]*$`:                "an absolute path without ':' and control characters",
	`^/[^\x00-\x1f\x7f]*$`:                 "an absolute path without control characters",
	`^/dev/(xvd|vd|sd)[b-z]$`:              "a device of a disk other than the first: /dev/vdb to /dev/vdz, or the same with sd or xvd",
	`^(@|[a-z0-9_*.-]+)$`:                  "@, or a DNS name in lower case: labels of a-z, 0-9, '-' and '_', separated by dots, the first one may be *",
	`^([0-9a-fA-F]{2})+$`:                  "an even number of hexadecimal digits",
	`^[!-~]+$`:                             "visible ASCII characters without spaces",
	`^[0-9a-fA-F]{128}$`:                   "128 hexadecimal digits",
	`^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$`: "a hardware address such as 52:54:00:12:34:56",
	`^[0-9a-fA-F]{64}$`:                    "64 hexadecimal digits",
	`^[0-9a-f]{2}(:[0-9a-f]{2}){5}$`:       "a hardware address in lower case, such as 52:54:00:12:34:56",
	`^[0-9a-f]{64}$`:                       "64 hexadecimal digits in lower case",
	`^[A-Za-z0-9_-]{43}$`:                  "43 characters of A-Z, a-z, 0-9, '_' and '-'",
	`^[^\x00-\x1f\x7f:]+$`:                 "one line of text without ':' and control characters",
	`^[^\x00-\x1f\x7f]+$`:                  "one line of text without control characters",
	`^[^\x00-\x1f\x7f]+[\r\n]*$`:           "one line of text without control characters",
	`^[^\x00-\x20\x7f/:]+$`:                "the name of a network interface, without spaces, '/' and ':'",
	`^[^\x00]*$`:                           "text without NUL characters",
	`^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$`: "1 to 15 characters of a-z, 0-9 and '-', with a letter or a digit at both ends",
	`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`: "1 to 63 characters of a-z, 0-9 and '-', with a letter or a digit at both ends",
	`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?([.][a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`: "a host name in lower case: labels of 1 to 63 characters of a-z, 0-9 and '-', separated by dots",
	`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`:  "a domain name in lower case: labels of 1 to 63 characters of a-z, 0-9 and '-', separated by dots",
	`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`:                                       "1 to 63 characters of a-z, 0-9, '-', '.' and '_', with a letter or a digit at both ends",
	`^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?=[^\x00-\x1f\x7f]*$`:                    "a label such as role=web: a key of 1 to 63 characters of a-z, 0-9, '-', '.', '_' and '/', then '=' and a value without control characters",
	`^[a-z]+(/[!-~]{1,200})?$`:                                                     "a kind of resource in the plural, or one resource of it, such as vms or vms/web-1",
	`^[a-z_][a-z0-9_-]{0,31}$`:                                                     "1 to 32 characters of a-z, 0-9, '_' and '-', beginning with a letter or '_'",
	`^vms:[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`:                                     "vms: and the id of a VM, such as vms:web-1",
}

// patternOf returns in words what the pattern of a schema allows.
func patternOf(s *openapi3.Schema) string {
	if words := patternWords[s.Pattern]; words != "" {
		return "must be " + words
	}
	return "must match " + s.Pattern
}

// multipleOf returns in words which values a schema with a step allows: the nearest ones to
// the value of the request.
func multipleOf(s *openapi3.Schema, value any) string {
	step := *s.MultipleOf
	unit := formatNumber
	rule := "must be a multiple of " + unit(step)
	if step == 1.0/mibPerGiB {
		rule = "must be a whole number of MiB, 1/1024 GiB"
		unit = func(n float64) string { return fmt.Sprintf("%s (%s MiB)", formatNumber(n), formatNumber(n*mibPerGiB)) }
	}
	v, ok := numberOf(value)
	if !ok {
		return rule
	}
	var nearest []string
	for _, n := range []float64{math.Floor(v/step) * step, math.Ceil(v/step) * step} {
		if s.Min != nil && n < *s.Min || s.Max != nil && n > *s.Max {
			continue
		}
		if text := unit(n); !slices.Contains(nearest, text) {
			nearest = append(nearest, text)
		}
	}
	switch len(nearest) {
	case 0:
		return rule
	case 1:
		return rule + ": the nearest allowed value is " + nearest[0]
	}
	return rule + ": the nearest allowed values are " + strings.Join(nearest, " and ")
}

// limit returns a limit of a number in words, and in MiB too if the number is in GiB.
func limit(s *openapi3.Schema, n *float64) string {
	if s.MultipleOf != nil && *s.MultipleOf == 1.0/mibPerGiB && *n < 1 {
		return fmt.Sprintf("%s (%s MiB)", formatNumber(*n), formatNumber(*n*mibPerGiB))
	}
	return formatNumber(*n)
}

// numberOf returns the number in a value of a request.
func numberOf(value any) (float64, bool) {
	switch n := value.(type) {
	case float64:
		return n, !math.IsInf(n, 0)
	case json.Number:
		f, err := n.Float64()
		return f, err == nil
	}
	return 0, false
}

func formatNumber(n float64) string { return strconv.FormatFloat(n, 'f', -1, 64) }
