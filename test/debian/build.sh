#!/usr/bin/env bash
# build.sh OUTDIR — builds OUTDIR/debian-12.qcow2, a Debian 12 cloud image for the
# end-to-end test with a real guest, unless it is up to date.
#
# The image consists of Debian packages and the files in root/ beside this script. Like
# any image for many machines it has no machine-id, no host keys and no instance id:
# cloud-init and systemd make them at the first boot. The seed is a volume `cidata`
# (NoCloud). user-data, growpart, resizefs and a network-config for systemd-networkd work
# as in other cloud images, qemu-guest-agent runs, and the console is ttyS0. The image
# has no timers, no persistent journal, no RSA keys and no cloud-init modules for other
# clouds, because these cost much time without KVM.
#
# The build needs root (the files of an image belong to root), mmdebstrap, mke2fs and
# qemu-img, but no loop device: it runs tools in the tree of the image, which mke2fs then
# writes into the file. It keeps the installed packages in OUTDIR/.cache.
#
# The disk, 2 GiB, GPT, boots by BIOS:
#
#   sector 0         GRUB's boot.img
#   14  sector 2048  GRUB's core.img
#   1   sector 4096  ext4, label debian-root; the last partition, so that it can grow
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
. "$(dirname "$0")/../../scripts/debian-tree.sh"

PACKAGES='linux-image-cloud-amd64 lz4 grub-pc-bin systemd-sysv systemd-resolved
	libnss-myhostname dbus udev cloud-init cloud-guest-utils qemu-guest-agent
	openssh-server sudo iproute2 iputils-ping netbase e2fsprogs'
MASKED='apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer
	fstrim.timer e2scrub_reap.service systemd-pstore.service systemd-binfmt.service
	systemd-update-utmp.service systemd-update-utmp-runlevel.service'
SECTORS=4194304
CORE_START=2048 ROOT_START=4096

main() {
	local src out
	src=$(cd "$(dirname "$0")" && pwd)
	mkdir -p "${1:?usage: build.sh OUTDIR}/.cache"
	out=$(cd "$1" && pwd)
	local stamp
	stamp=$(cd "$src" && find . ../../scripts/debian-tree.sh -type f | sort | xargs sha256sum | sha256sum)
	[ "$(cat "$out/.stamp" 2>/dev/null)" != "$stamp" ] || return 0
	[ "$(id -u)" = 0 ] || { echo "build.sh: building the Debian image needs root" >&2; return 1; }
	rm -f "$out/.stamp"

	root=$out/.cache/root # not local: the trap runs outside of main
	trap 'rm -rf "$root" "$root.raw"' EXIT
	rm -rf "$root"
	debian_tree "$root" "$out/.cache" "$PACKAGES"
	configure "$src/root"
	disk
	# A rename: a running QEMU keeps the old image open.
	qemu-img convert -f raw -O qcow2 "$root.raw" "$root.qcow2"
	mv "$root.qcow2" "$out/debian-12.qcow2"
	echo "$stamp" >"$out/.stamp"
	echo "debian: $(du -sh "$out/debian-12.qcow2" | cut -f1) in $out/debian-12.qcow2"
}

# configure FILES prepares the tree for the first boot.
configure() {
	tar -C "$1" --owner=0 --group=0 --mode=u=rwX,go=rX -c . | tar -C "$root" --no-overwrite-dir -x
	rm -rf "$root"/etc/ssh/ssh_host_* "$root/var/lib/cloud"
	find "$root/var/log" -type f -delete
	# Empty, not "uninitialized", which would run systemd's first-boot setup.
	: >"$root/etc/machine-id"
	inside systemctl --quiet enable systemd-networkd
	inside systemctl --quiet mask $MASKED
	inside update-initramfs -c -k all
	ln -sf "$(cd "$root" && echo boot/initrd.img-*)" "$root/initrd.img"
}

# disk makes the raw image beside the tree.
disk() {
	local raw=$root.raw tmp=$root/tmp
	truncate -s $((SECTORS * 512)) "$tmp/disk"
	inside sfdisk --quiet /tmp/disk <<-END
		label: gpt
		14: start=$CORE_START, size=$((ROOT_START - CORE_START)), type=21686148-6449-6E6F-744E-656564454649
		1: start=$ROOT_START, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
	END
	inside grub-mkimage -O i386-pc -o /tmp/core -p '(,gpt1)/boot/grub' biosdisk part_gpt ext2 normal linux
	put 0 bs=440 count=1 <"$root/usr/lib/grub/i386-pc/boot.img"
	put $((CORE_START * 512)) bs=1M <"$tmp/core"
	# The location of the rest of GRUB. grub-bios-setup would write it, but needs a device.
	number $CORE_START | put $((0x5c)) bs=8
	number $((CORE_START + 1)) | put $((CORE_START * 512 + 0x1f4)) bs=8
	mv "$tmp/disk" "$raw"
	rm "$tmp/core"
	mke2fs -q -t ext4 -L debian-root -m 1 -d "$root" \
		-E offset=$((ROOT_START * 512)) "$raw" $(((SECTORS - 33 - ROOT_START) / 8)) # in blocks of 4 KiB
}

# put OFFSET OPTION... writes stdin to the disk.
put() {
	dd of="$root/tmp/disk" oflag=seek_bytes seek="$1" "${@:2}" conv=notrunc status=none
}

# number N prints N as eight bytes, little-endian.
number() {
	local i
	for i in 0 8 16 24 32 40 48 56; do
		printf "\\x$(printf %x $(($1 >> i & 255)))"
	done
}

# inside COMMAND... runs a command in the tree.
inside() {
	env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C chroot "$root" "$@"
}

main "$@"
