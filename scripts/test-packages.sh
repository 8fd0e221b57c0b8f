#!/usr/bin/env bash
# test-packages.sh — builds the packages twice, in different circumstances, and fails if they
# differ or if lintian reports an error or a warning that is not overridden.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

scripts/package.sh "$out/1" deb rpm
(umask 077 && TZ=Asia/Tokyo LC_ALL=C.UTF-8 TMPDIR=$out scripts/package.sh "$out/2" deb rpm)
for file in "$out"/1/*; do
	cmp "$file" "$out/2/${file##*/}" || { echo "${file##*/} differs between two builds" >&2; exit 1; }
	echo "the same twice: ${file##*/}"
done
lintian --fail-on error,warning --tag-display-limit 0 "$out"/1/*.deb
man=$(dpkg-deb --fsys-tarfile "$out"/1/*.deb | tar -xO ./usr/share/man/man8/vmand.8.gz | gzip -d)
for word in "vmand console VM" "VMAN_LISTEN" "SIGHUP"; do
	grep -qF -- "${word//-/\\-}" <<<"$man" || { echo "the manual page does not mention $word" >&2; exit 1; }
done
