#!/usr/bin/env bash
# check-unit.sh UNIT... — checks units with systemd's verifier, together, if systemd is
# installed. The verifier exits with 0 after a warning about an unknown setting, so any
# output is an error. The programs and the manual pages need not be installed. A service
# that has a CapabilityBoundingSet= must have an exposure of at most MAX_EXPOSURE by
# `systemd-analyze security`, in tenths.
set -euo pipefail
MAX_EXPOSURE=${MAX_EXPOSURE:-33}
command -v systemd-analyze >/dev/null || exit 0

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0
complain() {
	printf '%s\n' "$*" >&2
	failed=1
}

units=()
for unit; do
	units+=("$dir/${unit##*/}")
	sed 's|^\(Exec[A-Za-z]*=\)[^ ]*|\1/bin/true|; /^Documentation=man:/d' "$unit" >"$dir/${unit##*/}"
done
# SYSTEMD_UNIT_PATH with a final colon: the units find one another before the installed ones.
said=$(SYSTEMD_UNIT_PATH=$dir: systemd-analyze verify "${units[@]}" 2>&1) || said+=" (exit status $?)"
[ -z "$said" ] || complain "$said"

for unit in "${units[@]}"; do
	grep -q '^CapabilityBoundingSet=' "$unit" || continue
	systemd-analyze security --offline=true --threshold="$MAX_EXPOSURE" "$unit" >"$dir/security" ||
		complain "${unit##*/}: $(tail -n 1 "$dir/security"); want at most $MAX_EXPOSURE tenths:
$(grep '^✗' "$dir/security")"
done
exit $failed
