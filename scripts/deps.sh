#!/usr/bin/env bash
# deps.sh run|test|debian|kvm|packages|systemd — installs the missing programs that vmand
# (run), its tests (test), their Debian image (debian), the tests under KVM (kvm), of the
# packages or with systemd need besides git, make and Go. It installs them with apt if it
# runs as root, and otherwise prints what to install. `run` succeeds even so: vmand works
# without QEMU, but no VM can start.
set -euo pipefail

# program : Debian package
needed=(qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils)
case ${1:-} in
run) ;;
test)
	needed+=(passt:passt) # user-mode networks
	needed+=(xz:xz-utils zstd:zstd bzip2:bzip2) # compressed images
	needed+=(gcc:gcc /usr/include/stdlib.h:libc6-dev) # the race detector
	needed+=(/sbin/mkfs.ext4:e2fsprogs findmnt:util-linux mount:mount) # file systems that break
	;;
packages) needed=(lintian:lintian dpkg-deb:dpkg) ;;
systemd) needed=(mmdebstrap:mmdebstrap systemd-nspawn:systemd-container unshare:util-linux mount:mount) ;;
kvm) needed+=(mmdebstrap:mmdebstrap mount:mount /sbin/mke2fs:e2fsprogs cpio:cpio) ;;
debian) needed+=(mmdebstrap:mmdebstrap mount:mount /sbin/mke2fs:e2fsprogs) ;;
*)
	echo "usage: deps.sh run|test|debian|kvm|packages|systemd" >&2
	exit 2
	;;
esac

missing=()
for entry in "${needed[@]}"; do
	program=${entry%%:*}
	[ -e "$program" ] || command -v "$program" >/dev/null || missing+=("${entry#*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0

give_up() {
	echo "deps: missing ${missing[*]}: $1" >&2
	[ "$mode" = run ] || exit 1
	echo "deps: continuing without them: vmand reports degraded health and no VM can start" >&2
	exit 0
}

mode=$1
command -v apt-get >/dev/null || give_up "install them with this system's package manager"
install=(apt-get install -y --no-install-recommends "${missing[@]}")
[ "$(id -u)" = 0 ] || give_up "run: sudo ${install[*]}"

echo "deps: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
{ apt-get -qq update && "${install[@]}" -qq; } </dev/null >&2 || give_up "apt-get failed, see above"
