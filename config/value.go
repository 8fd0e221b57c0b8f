package config

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

var levels = map[string]slog.Level{
	"debug": slog.LevelDebug,
	"info":  slog.LevelInfo,
	"warn":  slog.LevelWarn,
	"error": slog.LevelError,
}

// assign stores value in the field that to points to. If value does not have the
// field's type, it returns how to write the value, otherwise "".
func assign(to, value any) (fix string) {
	text, isText := value.(string)
	switch to := to.(type) {
	case *string:
		*to = text
		if !isText {
			return "must be text: put it in quotes"
		}
	case *bool:
		return assignBool(to, value)
	case *int:
		n, err := strconv.Atoi(fmt.Sprint(value))
		*to = n
		if err != nil {
			return "must be a whole number"
		}
	case *time.Duration:
		d, err := time.ParseDuration(text)
		*to = d
		if !isText || err != nil {
			return "must be a duration with a unit, such as " + exampleDuration(value)
		}
	case *[]string:
		return assignList(to, value)
	case *slog.Level:
		level, ok := levels[text]
		*to = level
		if !ok {
			return "must be one of debug, info, warn, error"
		}
	}
	return ""
}

// exampleDuration returns the duration that value probably means: a bare number
// means seconds.
func exampleDuration(value any) string {
	text := fmt.Sprint(value)
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		return text + "s"
	}
	return "5s, 90m or 720h"
}

func assignBool(to *bool, value any) (fix string) {
	switch value {
	case true, "true", "1":
		*to = true
	case false, "false", "0":
		*to = false
	default:
		return "must be true or false"
	}
	return ""
}

func assignList(to *[]string, value any) (fix string) {
	const must = "must be a list of words, such as [one, two]"
	switch value := value.(type) {
	case string:
		for word := range strings.SplitSeq(value, ",") {
			if word = strings.TrimSpace(word); word != "" {
				*to = append(*to, word)
			}
		}
	case []any:
		for _, element := range value {
			word, ok := element.(string)
			if !ok {
				return must
			}
			*to = append(*to, word)
		}
	default:
		return must
	}
	return ""
}
