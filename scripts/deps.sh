#!/usr/bin/env bash
# deps.sh run|test|debian — makes sure that the programs are there which vmand (run),
# its tests (test) or their image of Debian (debian) need beside git, make and Go. As
# root it installs through apt what is missing, and only that. Otherwise it says what
# to install; `run` then goes on, because vmand works without QEMU, except that no VM
# can start.
set -euo pipefail

# program : Debian package
needed=(qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils)
case ${1:-} in
run) ;;
test) needed+=(passt:passt gcc:gcc /usr/include/stdlib.h:libc6-dev /sbin/mkfs.ext4:e2fsprogs findmnt:util-linux mount:mount) ;; # passt for user-mode networks, a C compiler for the race detector, file systems to break
debian) needed+=(mmdebstrap:mmdebstrap mount:mount /sbin/mke2fs:e2fsprogs) ;;
*)
	echo "usage: deps.sh run|test|debian" >&2
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
	echo "deps: going on without; vmand reports degraded health and starts no VM" >&2
	exit 0
}

mode=$1
command -v apt-get >/dev/null || give_up "install them with this system's package manager"
install=(apt-get install -y --no-install-recommends "${missing[@]}")
[ "$(id -u)" = 0 ] || give_up "run: sudo ${install[*]}"

echo "deps: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
{ apt-get -qq update && "${install[@]}" -qq; } </dev/null >&2 || give_up "apt-get failed, see above"
