# Functions of init and the event handlers for the network.

net_up() {
	local module
	while read -r module; do insmod /lib/modules/$module.ko; done </lib/modules/order-net
	mkdir -p /etc /run/nic /tmp
	ip link set lo up
	vmt serve >/run/serve.log 2>&1 &
}

nics() { # adds every present NIC and port
	local path
	for path in /sys/class/net/*; do
		[ ! -e $path/device ] || nic_add ${path##*/}
	done
	for path in /sys/class/virtio-ports/*; do
		[ ! -e $path ] || port_add ${path##*/}
	done
}

disc() { # NAME: mounts a CD-ROM on /mnt/NAME and prints its label, its files and a cloud-init seed
	mkdir -p /mnt/$1
	mount -t iso9660 -o ro /dev/$1 /mnt/$1 || return 0
	label=$(dd if=/dev/$1 bs=1 skip=32808 count=32 2>/dev/null | tr -d ' ')
	say disc name=$1 label=$label files=$(ls /mnt/$1 | paste -s -d,)
	[ -e /mnt/$1/meta-data ] || return 0
	instance=$(sed -n 's/^instance-id: //p' /mnt/$1/meta-data)
	say seed instance=$instance hostname=$(sed -n 's/^local-hostname: //p' /mnt/$1/meta-data)
}

port_add() { # NAME: starts the agent of a port, which ends with the port
	mkdir /run/agent.$1 2>/dev/null || return 0
	if [ "$(cat /sys/class/virtio-ports/$1/name)" = org.qemu.guest_agent.0 ]; then
		[ ! -x /bin/qemu-ga ] || qga $1
		return 0
	fi
	{
		vmt agent /dev/$1 >/run/agent.$1/log 2>&1
		rm -r /run/agent.$1
	} &
}

qga() { # NAME: starts the QEMU guest agent on a port
	mkdir -p /dev/virtio-ports /var/run
	ln -sf /dev/$1 /dev/virtio-ports/org.qemu.guest_agent.0
	qemu-ga -d -t /run -f /run/qemu-ga.pid -l /run/qemu-ga.log
	say agent-start port=$1
}

nic_add() { # NAME: init and the kernel's event may both add a NIC, the second is a no-op
	mkdir /run/nic/$1 2>/dev/null || return 0
	say nic-add name=$1 mac=$(cat /sys/class/net/$1/address) mtu=$(cat /sys/class/net/$1/mtu)
	ip link set $1 up
	dhcp $1
}

nic_remove() { # NAME
	[ -e /run/nic/$1 ] || return 0
	nodhcp $1
	rm -r /run/nic/$1
	say nic-remove name=$1
}

dhcp() { # NAME: runs DHCP until nodhcp
	local id=$(opt clientid)
	udhcpc -f -i $1 -s /lib/udhcpc -p /run/nic/$1/pid -T 1 -t 20 -A 1 ${id:+-C -x 0x3d:$id} \
		-O staticroutes -O ntpsrv -O mtu -O search >/run/nic/$1/log 2>&1 &
}

nodhcp() { # NAME
	kill $(cat /run/nic/$1/pid 2>/dev/null) 2>/dev/null
}
