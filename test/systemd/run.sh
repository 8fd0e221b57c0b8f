#!/usr/bin/env bash
# run.sh DIR GUESTS — boots the tree that build.sh made in DIR with a real systemd as PID 1, runs
# inside.sh in it, lets the host shut down, and boots it again. DIR/packages holds the packages of
# two versions, old and new, and GUESTS the disks of test/guest. It needs root, systemd-nspawn and
# /dev/net/tun, and uses no network: the container has a network namespace of its own.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
dir=$(cd "$1" && pwd) guests=$(cd "$2" && pwd) src=$(cd "$(dirname "$0")" && pwd)
BOOT_TIMEOUT=${BOOT_TIMEOUT:-540} # seconds, of each of the two boots

# In a mount namespace of its own, which takes everything with it that is mounted below.
[ "${IN_NAMESPACE:-}" = 1 ] || IN_NAMESPACE=1 exec unshare -m "$0" "$@"
mount --make-rprivate /

work=$(mktemp -d "$dir/run.XXXXXX") name=vmand-test-$$
trap 'umount -l "$work/root" "$work/dev" 2>/dev/null; rm -rf "$work"' EXIT
root=$work/root
mkdir "$root"
mount --bind "$root" "$root" # nspawn refuses a root on which nothing is mounted
tar -C "$root" --numeric-owner --xattrs --xattrs-include='*' -xpf "$dir/tree.tar"
cp "$dir"/archives/*.deb "$root/var/cache/apt/archives/"
mkdir -p "$root/test" "$root/var/log/journal"
cp "$src/inside.sh" "$dir/packages"/*.deb "$guests"/disk-normal.qcow2 "$guests"/disk-deaf.qcow2 "$guests"/disk-agent.qcow2 "$root/test/"
mkdir "$work/dev"
mount -t tmpfs -o mode=755 tmpfs "$work/dev" # a file system that may have device nodes
mknod -m 666 "$work/dev/tun" c 10 200

# Jobs that have nothing to do with the test.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
	systemd-networkd.service systemd-resolved.service systemd-timesyncd.service console-getty.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
cat >"$root/etc/systemd/system/inside.service" <<-END
	[Unit]
	After=multi-user.target
	[Service]
	Type=oneshot
	Environment=HOME=/root DEBIAN_FRONTEND=noninteractive PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	ExecStart=/bin/bash /test/inside.sh
	TimeoutStartSec=infinity
	StandardOutput=file:/test/output
	StandardError=inherit
END
mkdir -p "$root/etc/systemd/system/timers.target.wants"
cat >"$root/etc/systemd/system/inside.timer" <<-END
	[Timer]
	OnActiveSec=1
	AccuracySec=100ms
END
ln -s ../inside.timer "$root/etc/systemd/system/timers.target.wants/inside.timer"

for part in install boot; do
	echo "=== $part"
	echo "$part" >"$root/test/part"
	: >"$root/test/output"
	rm -f "$root/test/ok"
	tail -n +1 -f "$root/test/output" &
	tail=$!
	timeout --kill-after=30 "$BOOT_TIMEOUT" systemd-nspawn -q -D "$root" -M "$name" --boot --register=no --keep-unit \
		--private-network --bind="$work/dev/tun:/dev/net/tun" --capability=all --console=pipe \
		systemd.unified_cgroup_hierarchy=0 systemd.log_target=journal </dev/null >"$work/boot.log" 2>&1 || true
	sleep 0.2 # for tail
	kill "$tail"
	if [ ! -e "$root/test/ok" ]; then
		echo "=== $part failed; the end of the journal:" >&2
		journalctl -D "$root/var/log/journal" -o short-monotonic --no-pager | grep -v '"msg":"request"' | tail -n 40 >&2 || true
		tail -n 5 "$work/boot.log" >&2
		exit 1
	fi
done
echo "=== ok"
