package cli

import (
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

// sizeUnits are the factors of the units; all are powers of 1024.
var sizeUnits = []struct {
	name   string
	factor int64
}{{"T", tib}, {"G", gib}, {"M", mib}, {"K", kib}, {"B", 1}}

var sizePattern = regexp.MustCompile(`^([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([KMGT]i?B?|B)$`)

// parseSize returns the number of bytes of a size such as 20G, 512M or 1.5TiB.
func parseSize(s string) (int64, error) {
	m := sizePattern.FindStringSubmatch(strings.ReplaceAll(strings.ToUpper(s), "I", "i"))
	if m == nil {
		return 0, usagef("%q is not a size", s).hint("write a number and a unit: 512M, 20G or 1.5T (powers of 1024)")
	}
	number, _ := new(big.Rat).SetString(m[1])
	for _, u := range sizeUnits {
		if m[2][:1] == u.name {
			number.Mul(number, new(big.Rat).SetInt64(u.factor))
		}
	}
	if !number.IsInt() || !number.Num().IsInt64() {
		return 0, usagef("%q is not a whole number of bytes that a disk can have", s)
	}
	return number.Num().Int64(), nil
}

// formatSize returns a size for people, with at most one decimal.
func formatSize(bytes int64) string {
	for _, u := range sizeUnits {
		if bytes >= u.factor {
			text := strconv.FormatFloat(float64(bytes)/float64(u.factor), 'f', 1, 64)
			return strings.TrimSuffix(text, ".0") + u.name
		}
	}
	return "0"
}

// A sizeFlag is a flag with a size in bytes; 0 if it is not given.
type sizeFlag int64

func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return formatSize(int64(*s))
}

func (s *sizeFlag) Type() string { return "SIZE" }

func (s *sizeFlag) Set(text string) error {
	n, err := parseSize(text)
	if err == nil && n == 0 {
		err = usagef("a size must be larger than 0")
	}
	*s = sizeFlag(n)
	return err
}

// mebibytes returns the size in MiB, which must be a whole number.
func (s sizeFlag) mebibytes() (int, error) {
	if s%mib != 0 {
		return 0, usagef("%d bytes is not a whole number of MiB", int64(s))
	}
	return int(s / mib), nil
}

// formatAge returns the time since t in its largest unit.
func formatAge(now, t time.Time) string {
	d := max(now.Sub(t), 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
