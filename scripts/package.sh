#!/usr/bin/env bash
# package.sh OUTDIR PACKAGER... — builds packages of vmand in OUTDIR; each PACKAGER is deb or
# rpm. Two builds of the same commit are byte-identical: scripts/test-packages.sh checks that.
# VERSION overrides the version, for tests.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD out=$(mkdir -p "${1:?usage: package.sh OUTDIR deb|rpm...}" && cd "$1" && pwd)
shift
export LC_ALL=C TZ=UTC0 CGO_ENABLED=0 SOURCE_DATE_EPOCH VERSION
VERSION=${VERSION:-$(scripts/version.sh version)}
SOURCE_DATE_EPOCH=$(scripts/version.sh epoch)
umask 022

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
flags=$(scripts/version.sh ldflags | sed "s|main.version=[^ ]*|main.version=$VERSION|")
go build -buildvcs=false -trimpath -ldflags "$flags" -o "$stage/vmand" .
cp packaging/*.service packaging/*.socket packaging/*.slice packaging/nfpm/* config.yaml "$stage/"
cp packaging/sysusers.d/vman.conf "$stage/sysusers.conf"
cp packaging/tmpfiles.d/vman.conf "$stage/tmpfiles.conf"

date=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%d)
"$stage/vmand" --help | awk -f scripts/man.awk -v version="$VERSION" -v date="$date" | gzip -9n >"$stage/vmand.8.gz"
gzip -9nc CHANGELOG.md >"$stage/changelog.gz"
gzip -9n >"$stage/changelog.Debian.gz" <<-END
	vmand ($VERSION-1) stable; urgency=medium

	  * See changelog.gz.

	 -- vmand developers <vmand@example.invalid>  $(date -Ru -d "@$SOURCE_DATE_EPOCH")
END
go tool -modfile=tools/sbom/go.mod cyclonedx-gomod bin -json -noserial -notimestamp \
	-output "$stage/sbom.cdx.json" "$stage/vmand" 2>"$stage/sbom.log" || { cat "$stage/sbom.log" >&2; exit 1; }
find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

for packager; do
	(cd "$stage" && go -C "$root" tool -n -modfile=tools/nfpm/go.mod nfpm >nfpm.path &&
		"$(cat nfpm.path)" package --config nfpm.yaml --packager "$packager" --target "$out/") >"$stage/nfpm.log" ||
		{ cat "$stage/nfpm.log" >&2; exit 1; }
done
