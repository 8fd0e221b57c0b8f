#!/usr/bin/env bash
# version.sh version|commit|date|epoch|ldflags — the one source of the version: git. The last tag
# vX.Y.Z is the version of its commit. Later commits have X.Y.Z+N.gHASH, commits before the first
# tag 0.0.0+N.gHASH, where N is the number of commits, so that packages of them are upgrades of
# one another. The tag v1.0.0-rc1 is the version 1.0.0~rc1, which is below 1.0.0. A work tree
# with changes adds .dirty. date is that of the commit, and epoch the same as a Unix time.
set -euo pipefail
cd "$(dirname "$0")/.."

version() {
	local tag distance hash described
	hash=$(git rev-parse --short=7 HEAD 2>/dev/null) || { echo unknown; return; }
	if described=$(git describe --tags --long --match 'v[0-9]*' 2>/dev/null); then
		described=${described%-g*}
		distance=${described##*-} tag=${described%-*}
		tag=${tag#v}
	else
		tag=0.0.0 distance=$(git rev-list --count HEAD)
	fi
	tag=${tag/-/\~}
	[ "$distance" = 0 ] || tag+=+$distance.g$hash
	git diff --quiet HEAD -- || tag+=$([[ $tag = *+* ]] && echo . || echo +)dirty
	echo "$tag"
}

case ${1:-} in
version) version ;;
commit) git rev-parse HEAD 2>/dev/null || echo unknown ;;
date) TZ=UTC0 git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null || echo unknown ;;
epoch) git log -1 --format=%ct ;;
ldflags) echo "-s -w -X main.version=$(version) -X main.commit=$(scripts/version.sh commit) -X main.date=$(scripts/version.sh date)" ;;
*)
	echo "usage: version.sh version|commit|date|epoch|ldflags" >&2
	exit 2
	;;
esac
