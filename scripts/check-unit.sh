#!/usr/bin/env bash
# check-unit.sh UNIT — lets systemd check a service file, where systemd is installed.
# Its verifier exits with 0 on an unknown setting and only mentions it, so whatever
# it says counts. The program need not be installed yet.
set -euo pipefail
command -v systemd-analyze >/dev/null || exit 0

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|' "$1" >"$dir/${1##*/}"
said=$(systemd-analyze verify "$dir/${1##*/}" 2>&1) || said+=" (exit status $?)"
[ -z "$said" ] || { printf '%s: %s\n' "$1" "$said" >&2; exit 1; }
