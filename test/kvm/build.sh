#!/usr/bin/env bash
# build.sh OUTDIR — builds a Linux guest with a working /dev/kvm, in which the tests run
# under KVM on a host that has none. It does nothing if the guest is up to date.
#
# QEMU's emulator (TCG) emulates SVM, the hardware virtualization of AMD, so kvm_amd works
# in the guest. The guest consists of Debian packages and the files in root/ beside this
# script. It has no systemd: root/init is its first process.
#
# OUTDIR receives
#
#   root.raw    an ext4 file system without partitions
#   vmlinuz     the kernel of the guest, for a direct boot
#   initrd.img  an initrd that mounts /dev/vda and starts /init in it
#
# The build needs root (the files of the guest belong to root), mmdebstrap, mke2fs and cpio.
# It keeps the installed packages in OUTDIR/.cache.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
. "$(dirname "$0")/../../scripts/debian-tree.sh"

PACKAGES='linux-image-cloud-amd64 busybox-static qemu-system-x86 qemu-utils seabios passt
	iproute2 nftables conntrack kmod procps udev util-linux mount e2fsprogs cpio'

main() {
	local src out stamp
	src=$(cd "$(dirname "$0")" && pwd)
	mkdir -p "${1:?usage: build.sh OUTDIR}/.cache"
	out=$(cd "$1" && pwd)
	stamp=$(cd "$src" && find build.sh root ../../scripts/debian-tree.sh -type f | sort | xargs sha256sum | sha256sum)
	[ "$(cat "$out/.stamp" 2>/dev/null)" != "$stamp" ] || return 0
	[ "$(id -u)" = 0 ] || { echo "build.sh: building the KVM guest needs root" >&2; return 1; }
	rm -f "$out/.stamp"

	root=$out/.cache/root # not local: the trap runs outside of main
	trap 'rm -rf "$root"' EXIT
	rm -rf "$root"
	debian_tree "$root" "$out/.cache" "$PACKAGES" --aptopt='APT::Install-Recommends "false"'
	install -m 755 "$src/root/init" "$root/init"
	echo kvm-guest >"$root/etc/hostname"
	echo 5f0a1b2c3d4e4f528a0f3c1e6a3d4f52 >"$root/etc/machine-id"
	local version
	version=$(cd "$root/lib/modules" && echo *)
	initrd "$version" >"$out/initrd.img"
	cp "$root/boot/vmlinuz-$version" "$out/vmlinuz"
	truncate -s 2G "$out/root.raw.new"
	mke2fs -q -F -t ext4 -m 0 -O ^has_journal -d "$root" "$out/root.raw.new"
	mv "$out/root.raw.new" "$out/root.raw"
	echo "$stamp" >"$out/.stamp"
	echo "kvm guest: Linux $version in $out"
}

# initrd VERSION prints an initrd with busybox and the modules of a virtio disk. ext4 is
# built into the kernel.
initrd() {
	local tree=$root.initrd n=0 module file
	rm -rf "$tree"
	mkdir -p "$tree"/{bin,modules,dev,proc,new}
	cp "$root/bin/busybox" "$tree/bin/"
	for module in virtio_pci virtio_blk; do
		for file in $(chroot "$root" modprobe -S "$1" --show-depends $module | awk '$1 == "insmod" { print $2 }'); do
			[ -z "$(find "$tree/modules" -name "*-${file##*/}")" ] || continue
			n=$((n + 1))
			cp "$root$file" "$tree/modules/$(printf %02d $n)-${file##*/}"
		done
	done
	cat >"$tree/init" <<-'END'
		#!/bin/busybox sh
		/bin/busybox mount -t devtmpfs dev /dev
		/bin/busybox mount -t proc proc /proc
		for module in /modules/*; do /bin/busybox insmod $module; done
		n=0
		while [ ! -b /dev/vda ] && [ $n -lt 100 ]; do /bin/busybox usleep 50000; n=$((n + 1)); done
		/bin/busybox mount -t ext4 -o noatime /dev/vda /new && exec /bin/busybox switch_root /new /init
		exec /bin/busybox poweroff -f
	END
	chmod +x "$tree/init"
	(cd "$tree" && find . | cpio -o -H newc --quiet) | gzip
	rm -rf "$tree"
}

main "$@"
