package config

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// An input holds all sources, merged by viper.
type input struct {
	viper *viper.Viper
	flags *pflag.FlagSet
	given map[string]any // content of the file
	file  string         // name of the file
}

// merge gives viper all sources of all settings.
func (in input) merge(defaultFile []byte) error {
	in.viper.AllowEmptyEnv(true)                         // VMAN_LISTEN= disables TCP
	defaults, _ := parseFile(defaultFile, "config.yaml") // a test checks it
	if err := errors.Join(in.viper.MergeConfigMap(defaults), in.viper.MergeConfigMap(in.given)); err != nil {
		return err
	}
	for _, s := range settings {
		err := errors.Join(
			in.viper.BindEnv(append([]string{s.key}, s.variables()...)...),
			in.viper.BindPFlag(s.key, in.flags.Lookup(s.flag())),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// complaint names a setting, its value, the source of the value, and the fix.
func (in input) complaint(s setting, fix string) string {
	return fmt.Sprintf("%s: %q (%s): %s", s.key, fmt.Sprint(in.viper.Get(s.key)), in.source(s), fix)
}
