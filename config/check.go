package config

import (
	"fmt"
	"net"
	"net/netip"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxSocketPath = 107 // bytes: sun_path without its NUL (unix(7))

	minInterval     = 100 * time.Millisecond
	maxInterval     = 5 * time.Second
	maxSlowInterval = time.Hour

	maxParallel  = 1000
	minStopLimit = 10 * time.Second
	maxStopLimit = 25 * time.Minute

	minKeep     = time.Hour
	minEvents   = 1000
	maxImageGiB = 16 << 10 // the largest disk
)

// Each check returns how to fix a setting, or "" if it is valid.

func checkListen(c *Config) string {
	if c.Listen == "" {
		return ""
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return "must be HOST:PORT, such as 127.0.0.1:8000, or empty to disable TCP"
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "the port must be a number from 0 (any free port) to 65535"
	}
	if n == 0 && host == "" {
		return "port 0 needs a host: use HOST:0"
	}
	address, err := netip.ParseAddr(host)
	loopback := host == "localhost" || err == nil && address.IsLoopback()
	if !loopback && !c.ListenInsecure {
		return "plain HTTP beyond loopback exposes tokens on the network: " +
			"use 127.0.0.1, or accept the risk by setting listen_insecure to true"
	}
	return ""
}

func checkSocket(c *Config) string {
	if len(c.Socket) > maxSocketPath {
		return fmt.Sprintf("%s has %d bytes, the kernel allows %d: set socket or runtime_dir to a shorter path",
			c.Socket, len(c.Socket), maxSocketPath)
	}
	if c.Socket == "" && c.Listen == "" {
		return "without socket and listen the API is unreachable: set one of them"
	}
	return ""
}

func checkGroup(c *Config) string {
	if c.Server.Group == "" {
		return ""
	}
	if _, err := strconv.ParseUint(c.Server.Group, 10, 31); err == nil {
		return ""
	}
	if _, err := user.LookupGroup(c.Server.Group); err != nil {
		return `the group does not exist: create it, name another, or use "none"`
	}
	return ""
}

func checkInterval(c *Config) string {
	interval := c.Observer.Interval
	switch {
	case interval < minInterval:
		return fmt.Sprintf("must be at least %s", minInterval)
	case interval > maxSlowInterval:
		return "must be at most 1h"
	case interval > maxInterval && !c.ObserverAllowSlow:
		return "is longer than 5s, which delays noticing a VM that ended: " +
			"use 5s, or accept the delay by setting observer.allow_slow to true"
	}
	return ""
}

func checkImageSize(c *Config) string {
	if c.ImagesMaxGiB < 1 || c.ImagesMaxGiB > maxImageGiB {
		return fmt.Sprintf("must be 1 to %d", maxImageGiB)
	}
	c.QEMU.Images.MaxBytes = int64(c.ImagesMaxGiB) << 30
	return ""
}

func checkPrivate(c *Config) string {
	for _, text := range c.ImagesAllowPrivate {
		prefix, err := netip.ParsePrefix(text)
		if address, aerr := netip.ParseAddr(text); aerr == nil && address.Zone() == "" {
			prefix, err = address.Prefix(address.BitLen())
		}
		if err != nil {
			return "must be a list of addresses and subnets, such as [10.0.0.0/8, 127.0.0.1]"
		}
		c.QEMU.Images.AllowPrivate = append(c.QEMU.Images.AllowPrivate, prefix.Masked())
	}
	return ""
}

func checkGuestsParallel(c *Config) string {
	if c.GuestsParallel < 1 || c.GuestsParallel > maxParallel {
		return fmt.Sprintf("must be 1 to %d", maxParallel)
	}
	return ""
}

func checkGuestsStopLimit(c *Config) string {
	if c.GuestsStopLimit < minStopLimit || c.GuestsStopLimit > maxStopLimit {
		return "must be 10s to 25m: systemd powers a host off by force after 30m"
	}
	return ""
}

func checkKeep(c *Config) string {
	if c.Manager.Keep < minKeep {
		return "must be at least 1h"
	}
	return ""
}

func atLeast(value, least int) string {
	if value < least {
		return fmt.Sprintf("must be at least %d", least)
	}
	return ""
}

func notEmpty(value string) string {
	if value == "" {
		return "must not be empty"
	}
	return ""
}

func oneOf(value string, words ...string) string {
	if slices.Contains(words, value) {
		return ""
	}
	return "must be one of " + strings.Join(words, ", ")
}
