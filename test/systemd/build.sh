#!/usr/bin/env bash
# build.sh OUTDIR — makes OUTDIR/tree.tar, a bare Debian 12 with systemd, unless it is up to date:
# no QEMU and no vmand. It keeps the packages that vmand depends on in OUTDIR/archives, from which
# apt installs them in the test without a network. It needs root and mmdebstrap.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

PACKAGES='systemd-sysv dbus ca-certificates curl iproute2 procps'
# The dependencies in packaging/nfpm/nfpm.yaml.
DEPENDS='qemu-system-x86 qemu-utils passt'

main() {
	local src out stamp
	src=$(cd "$(dirname "$0")" && pwd)
	mkdir -p "${1:?usage: build.sh OUTDIR}/.cache"
	out=$(cd "$1" && pwd)
	. "$src/../../scripts/debian-tree.sh"
	stamp=$(cat "$src/build.sh" "$src/../../scripts/debian-tree.sh" | sha256sum)
	[ "$(cat "$out/.stamp" 2>/dev/null)" != "$stamp" ] || return 0
	[ "$(id -u)" = 0 ] || { echo "build.sh: building the Debian tree needs root" >&2; return 1; }
	rm -f "$out/.stamp"

	root=$out/.cache/root # not local: the trap runs outside of main
	trap 'rm -rf "$root"' EXIT
	rm -rf "$root" "$out/archives"
	debian_tree "$root" "$out/.cache" "$PACKAGES" --aptopt='APT::Install-Recommends "false"' --skip=cleanup/apt/lists
	mkdir "$out/archives"
	mount --bind /proc "$root/proc" 2>/dev/null || true
	chroot "$root" apt-get -qq -y --no-install-recommends --download-only install $DEPENDS >/dev/null
	umount "$root/proc" 2>/dev/null || true
	mv "$root"/var/cache/apt/archives/*.deb "$out/archives/"
	tar -C "$root" --numeric-owner --xattrs --xattrs-include='*' -cpf "$out/tree.tar" .
	echo "$stamp" >"$out/.stamp"
	echo "systemd: $(du -sh "$out/tree.tar" | cut -f1) and $(ls "$out/archives" | wc -l) packages in $out"
}

main "$@"
