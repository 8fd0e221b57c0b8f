# Functions of init and the event handlers.

say() { # EVENT KEY=VALUE...
	local uptime
	read -r uptime _ </proc/uptime
	echo "VMT: $* t=$uptime"
}

opt() { # KEY [DEFAULT]
	local value
	value=$(sed -n "s/^$1=//p" /run/options)
	echo "${value:-$2}"
}

off() {
	sync
	say poweroff
	poweroff -f
}

listening() { # ACPID: whether acpid has opened the power button, and uevent its netlink socket (protocol 15)
	ls -l /proc/$1/fd 2>/dev/null | grep -q /dev/input/event &&
		awk '$2 == 15 && $3 > 0 { found = 1 } END { exit !found }' /proc/net/netlink
}

disk() { # add|remove|resize NAME: init and the kernel's event may both add a disk, the second is a no-op
	case $1 in
	add)
		mkdir /run/disk.$2 2>/dev/null || return 0
		say disk-add name=$2 bytes=$(bytes $2) ro=$(cat /sys/block/$2/ro) $(identity $2)
		case $2 in sr*) . /lib/net.sh && disc $2 ;; esac # the driver comes with net.sh
		;;
	remove)
		case $2 in sr*) umount -l /mnt/$2 ;; esac
		rmdir /run/disk.$2 && say disk-remove name=$2
		;;
	resize) say disk-resize name=$2 bytes=$(bytes $2) ;;
	esac
}

bytes() { echo $(($(cat /sys/block/$1/size) * 512)); }

byte() { od -A n -t u1 -j $1 -N 1 $2; }

# identity prints the serial number of a disk and its name in /dev/disk/by-id of udev. For
# SCSI, the serial number is VPD page 0x80. The name consists, as in scsi_id, of vendor,
# model and the first designator of page 0x83 (type 0: vendor specific, ASCII).
identity() {
	local device=/sys/block/$1/device serial id kind
	case $1 in
	vd*)
		serial=$(cat /sys/block/$1/serial)
		echo "serial=$serial by-id=${serial:+virtio-$serial}"
		;;
	sd*)
		serial=$(tail -c +5 $device/vpd_pg80 | tr -d '\0')
		kind=$(($(byte 5 $device/vpd_pg83) & 15))
		id=$(tail -c +9 $device/vpd_pg83 | head -c $(byte 7 $device/vpd_pg83))
		id=$(echo "$kind$(cat $device/vendor)$(cat $device/model)$id" | sed 's/ *$//' | tr -s ' ' _)
		echo "serial=$serial by-id=scsi-$id scsi=$(basename $(readlink $device))"
		;;
	esac
}
