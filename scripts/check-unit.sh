#!/usr/bin/env bash
# check-unit.sh UNIT — checks a service file with systemd's verifier, if systemd is
# installed. The verifier exits with 0 after a warning about an unknown setting, so any
# output is an error. The program of the service need not be installed.
set -euo pipefail
command -v systemd-analyze >/dev/null || exit 0

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|' "$1" >"$dir/${1##*/}"
said=$(systemd-analyze verify "$dir/${1##*/}" 2>&1) || said+=" (exit status $?)"
[ -z "$said" ] || { printf '%s: %s\n' "$1" "$said" >&2; exit 1; }
