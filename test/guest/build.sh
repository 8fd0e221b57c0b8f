#!/usr/bin/env bash
# build.sh OUTDIR — builds the small Linux guest that the end-to-end tests boot, unless it
# is up to date.
#
# The guest consists of Debian packages (cloud kernel, busybox, syslinux, iperf3,
# qemu-guest-agent) and of the files in root/, tools/ and vmt/ beside this script. The
# build needs no root, no loop device and no mount, only apt-get, dpkg-deb, Go and
# qemu-img. Its other tools (mtools, cpio, strings) come from the downloaded packages.
#
# OUTDIR receives
#
#   disk.raw            the disk, 32 MiB, which boots by BIOS from virtio-blk
#   disk-NAME.qcow2     the same disk with the options of a line of VARIANTS below
#   vmlinuz, initrd.img the files on the disk, for a direct kernel boot
#   vmt                 the program in vmt/, which the tests also use on the host
#   MANIFEST            the packages in the guest
#
# The disk:
#
#   sector 0            MBR (syslinux)
#   sector 1            boot counter, decimal text, which the guest increments at each boot
#   sector 2            options, lines of KEY=VALUE padded with NULs (see root/init)
#   sector 2048 ...     FAT16: syslinux, kernel, initrd
#   sector 65536 ...    with the option net=NAME: the tar archive NAME, see archives
#
# Variants without a network differ in 512 bytes at offset 1024 of disk.raw only. The files
# for the network are not in the initrd, because the BIOS would read them slowly, also for
# tests without a network.
set -euo pipefail
export LC_ALL=C

VARIANTS='
normal
deaf      button=ignore
poweroff  poweroff=1
reboot    reboot=1
panic     panic=1
net       net=tools
clones    net=tools clientid=ff0a0b0c0d00020000ab11f00dfeedc0ffee00
bench     net=bench
agent     net=agent
'
# Modules that are loaded at boot, in this order, each after its dependencies.
MODULES='virtio_pci virtio_blk virtio_scsi sd_mod button evdev pvpanic-pci pvpanic-mmio'
# Modules of the archive tools. Without virtio-rng, programs wait for random numbers.
NET_MODULES='virtio_net virtio_console virtio-rng 8021q sr_mod isofs'
# The libraries of qemu-ga.
AGENT_LIBRARIES='libudev.so.1 libnuma.so.1 liburing.so.2 libglib-2.0.so.0 libgmodule-2.0.so.0
	libpcre2-8.so.0 libm.so.6 libc.so.6'
# The libraries of iperf3.
IPERF_LIBRARIES='libiperf.so.0 libsctp.so.1 libcrypto.so.3 libc.so.6 libm.so.6'
CMDLINE='console=ttyS0 quiet loglevel=4 apparmor=0 audit=0 mitigations=off nokaslr edd=off'
CMDLINE+=' tsc=reliable no_timer_check random.trust_cpu=on'
PACKAGES='busybox-static mtools syslinux syslinux-common iperf3 libiperf0 libsctp1 libssl3 libc6
	qemu-guest-agent libglib2.0-0 libnuma1 libudev1 liburing2 libpcre2-8-0'
PART_START=2048 PART_SECTORS=63488 # 1 MiB of gap, 31 MiB of FAT
TOOLS_START=65536                  # also in root/init

main() {
	local src out
	src=$(cd "$(dirname "$0")" && pwd)
	mkdir -p "${1:?usage: build.sh OUTDIR}"
	out=$(cd "$1" && pwd)
	local stamp
	stamp=$(cd "$src" && find . -type f | sort | xargs sha256sum | sha256sum)
	[ "$(cat "$out/.stamp" 2>/dev/null)" != "$stamp" ] || return 0
	rm -f "$out/.stamp"

	local cache=$out/.cache
	mkdir -p "$cache/deb"
	fetch "$cache"
	unpack "$cache"
	initrd "$src/root" "$cache" "$out/initrd.img"
	(cd "$src/vmt" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$out/vmt" .)
	archives "$src/tools" "$cache" "$out/vmt"
	disk "$cache" "$out"
	variants "$cache" "$out"
	(cd "$cache/deb" && ls -- *.deb) >"$out/MANIFEST"
	echo "$stamp" >"$out/.stamp"
	echo "test guest: kernel $(kernel_version "$cache"), $(du -sh --exclude=.cache "$out" | cut -f1) in $out"
}

# fetch downloads the packages that are not in the cache. It updates the package lists only
# if they are missing or outdated.
fetch() {
	download "$1" && return
	if [ "$(id -u)" != 0 ]; then
		echo "build.sh: cannot download the guest's packages; run: sudo apt-get update" >&2
		return 1
	fi
	apt-get -qq update
	download "$1"
}

# download CACHE
download() {
	local kernel package missing=()
	kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
		sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
	[ -n "$kernel" ] || return 1
	for package in $kernel $PACKAGES; do
		compgen -G "$1/deb/${package}_*.deb" >/dev/null || missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	# apt would download as its own user, which has no write access here.
	(cd "$1/deb" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "${missing[@]}" >/dev/null)
}

unpack() {
	local deb
	mkdir -p "$1/tree"
	for deb in "$1"/deb/*.deb; do
		[ ! -e "$1/tree/.${deb##*/}" ] || continue
		dpkg-deb -x "$deb" "$1/tree"
		: >"$1/tree/.${deb##*/}"
	done
}

kernel_version() {
	local dirs=("$1"/tree/lib/modules/*-cloud-amd64)
	basename "${dirs[-1]}"
}

# initrd ROOT CACHE OUT packs busybox, the modules and the files of root/ into a cpio
# archive, uncompressed: under TCG, decompressing takes longer than reading.
initrd() {
	local root=$2/root bb=$2/tree/bin/busybox applet module
	rm -rf "$root"
	mkdir -p "$root"/{bin,dev,lib/modules,proc,run,sys}
	cp -R "$1/." "$root"
	cp "$bb" "$root/bin/"
	for applet in $("$bb" --list); do
		[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
	done
	: >"$root/lib/modules/order"
	for module in $MODULES; do
		add_module "$2/tree/lib/modules/$(kernel_version "$2")" "$root/lib/modules" "$bb" "$module"
	done
	find "$root" -exec touch -h -d @1700000000 {} +
	(cd "$root" && find . -mindepth 1 | sort | "$bb" cpio -o -H newc -R 0:0 >"$3" 2>/dev/null)
}

# add_module FROM TO BUSYBOX NAME copies a module after its dependencies.
add_module() {
	local name=${4//_/-} file dependency
	! grep -qx "$name" "$2/order" || return 0
	file=$(find "$1/kernel" -name "$name.ko" -o -name "${name//-/_}.ko")
	[ -n "$file" ] || { echo "build.sh: no module $name in $1" >&2; return 1; }
	for dependency in $("$3" strings "$file" | sed -n 's/^depends=//p' | tr ',' ' '); do
		add_module "$1" "$2" "$3" "$dependency"
	done
	cp "$file" "$2/$name.ko"
	echo "$name" >>"$2/order"
}

# archives TOOLS CACHE VMT makes the archives that are unpacked over the initrd:
# CACHE/tools.tar with vmt, NET_MODULES and the files of tools/, CACHE/agent.tar with
# qemu-ga in addition, and CACHE/bench.tar with iperf3 in addition to tools.tar.
archives() {
	local tree=$2/tools module bb=$2/tree/bin/busybox
	rm -rf "$tree" "$2/agent"
	mkdir -p "$tree"/{bin,lib/modules}
	cp -R "$1/." "$tree"
	cp "$3" "$tree/bin/vmt"
	cp "$2/root/lib/modules/order" "$tree/lib/modules/order" # the modules of the initrd are not added again
	for module in $NET_MODULES; do
		add_module "$2/tree/lib/modules/$(kernel_version "$2")" "$tree/lib/modules" "$bb" "$module"
	done
	grep -vxFf "$2/root/lib/modules/order" "$tree/lib/modules/order" >"$tree/lib/modules/order-net"
	rm "$tree/lib/modules/order"
	archive "$tree" "$2/tools.tar"
	cp -R "$tree" "$2/agent"
	program "$2" "$2/agent" usr/sbin/qemu-ga $AGENT_LIBRARIES
	archive "$2/agent" "$2/agent.tar"
	program "$2" "$tree" usr/bin/iperf3 $IPERF_LIBRARIES
	archive "$tree" "$2/bench.tar"
}

# program CACHE TO FILE LIBRARY... adds a program of a package and its libraries.
program() {
	local library
	mkdir -p "$2"/{bin,lib64,usr/lib}
	cp "$1/tree/$3" "$2/bin/"
	cp -L "$1"/tree/lib64/ld-linux-x86-64.so.2 "$2/lib64/"
	for library in "${@:4}"; do
		cp -L "$(find "$1"/tree/{lib,usr/lib}/x86_64-linux-gnu -name "$library" | head -n 1)" "$2/usr/lib/"
	done
}

# archive DIRECTORY FILE
archive() {
	find "$1" -exec touch -h -d @1700000000 {} +
	tar -C "$1" --sort=name --owner=0 --group=0 -cf "$2" .
}

# disk CACHE OUT makes disk.raw: MBR, control sectors, a FAT file system with syslinux.
disk() {
	local tree=$1/tree fat=$1/fat.img raw=$2/disk.raw
	export PATH=$tree/usr/bin:$PATH # syslinux calls mtools
	cp "$tree/boot/vmlinuz-$(kernel_version "$1")" "$2/vmlinuz"
	printf 'DEFAULT guest\nPROMPT 0\nLABEL guest\n LINUX /vmlinuz\n INITRD /initrd.img\n APPEND %s\n' \
		"$CMDLINE" >"$1/syslinux.cfg"

	rm -f "$fat" "$raw"
	truncate -s $((PART_SECTORS * 512)) "$fat"
	mformat -i "$fat" -T $PART_SECTORS -h 16 -s 63 -H $PART_START -N 564d5401 -v GUEST ::
	mcopy -i "$fat" "$2/vmlinuz" "$2/initrd.img" "$1/syslinux.cfg" ::
	syslinux --install "$fat"

	truncate -s $(((PART_START + PART_SECTORS) * 512)) "$raw"
	dd if="$tree/usr/lib/syslinux/mbr/mbr.bin" of="$raw" bs=440 count=1 conv=notrunc status=none
	# One active partition of type 0e (FAT16, LBA): start 0x800, length 0xf800.
	printf 'VMT\1\0\0\x80\xfe\xff\xff\x0e\xfe\xff\xff\0\x08\0\0\0\xf8\0\0' |
		dd of="$raw" bs=1 seek=440 conv=notrunc status=none
	printf '\x55\xaa' | dd of="$raw" bs=1 seek=510 conv=notrunc status=none
	printf '0\n' | dd of="$raw" bs=512 seek=1 conv=notrunc status=none
	dd if="$fat" of="$raw" bs=512 seek=$PART_START conv=notrunc,sparse status=none
}

# variants CACHE OUT makes OUT/disk-NAME.qcow2 of OUT/disk.raw.
variants() {
	local name options archive raw=$1/variant.raw
	while read -r name options; do
		[ -n "$name" ] || continue
		cp --sparse=always "$2/disk.raw" "$raw"
		printf '%s\n' "$options" | tr ' ' '\n' | dd of="$raw" bs=512 seek=2 conv=notrunc status=none
		archive=$(sed -n 's/.*\bnet=\([a-z]*\).*/\1/p' <<<"$options")
		[ -z "$archive" ] || dd if="$1/$archive.tar" of="$raw" bs=512 seek=$TOOLS_START conv=notrunc status=none
		# A rename: a running QEMU keeps the old disk open.
		qemu-img convert -f raw -O qcow2 "$raw" "$1/variant.qcow2"
		mv "$1/variant.qcow2" "$2/disk-$name.qcow2"
	done <<<"$VARIANTS"
	rm -f "$raw"
}

main "$@"
