#!/usr/bin/env bash
# test-kvm.sh [FILE] — runs tests under KVM, in the guest that test/kvm/build.sh makes, and
# fails if one fails or is skipped. Each line of FILE, by default test/kvm/tests, runs in a
# guest of its own (see test/kvm/job.sh). The emulated SVM sometimes ends that guest, so a line
# whose guest did not finish runs once more. The outputs are in build/kvm/out. TestTorture runs
# for VMAN_TEST_TORTURE seconds, 60 by default; LIMIT is the longest time of a line.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
cd "$(dirname "$0")/.."
kvm=$PWD/build/kvm out=$PWD/build/kvm/out job=$PWD/build/kvm/job
LIMIT=${LIMIT:-500} # seconds
rm -rf "$job" "$out"
mkdir -p "$job/src" "$out/coverage"
grep -v '^#' "${1:-test/kvm/tests}" >"$job/tests"

# The tests find the sources and the contract relative to go.mod.
git ls-files -co --exclude-standard | tar -c --files-from=- | tar -x -C "$job/src"
cp test/kvm/job.sh "$job/"
cp -r build/guest "$job/guest"
rm -rf "$job/guest/.cache"
export CGO_ENABLED=0
go build -cover -covermode=atomic -coverpkg=./... -o "$job/vmand-cover" .
go build -tags failpoints -o "$job/vmand-failpoints" .
awk '!seen[$1]++ { print $1, $2 }' "$job/tests" | while read -r binary dir; do
	go test -c -tags kvm -o "$job/$binary.test" "./$dir"
done
truncate -s 3G "$kvm/job.raw"
mke2fs -q -F -t ext4 -m 0 -O ^has_journal -d "$job" "$kvm/job.raw"
cp "$job/tests" "$out/tests"
rm -rf "$job"
lines=$(wc -l <"$out/tests")

# boot N runs line N. It fails if the guest did not finish the job.
boot() {
	local console=$out/console-$1
	timeout "$LIMIT" qemu-system-x86_64 -machine q35 -accel tcg,thread=multi,tb-size=512 -cpu qemu64,+svm,+npt \
		-smp 2 -m 4G -nodefaults -no-user-config -display none -no-reboot \
		-kernel "$kvm/vmlinuz" -initrd "$kvm/initrd.img" -append "console=ttyS0 quiet loglevel=4 apparmor=0 audit=0 \
mitigations=off nokaslr edd=off tsc=reliable no_timer_check random.trust_cpu=on net.ifnames=0 panic=-1 job=$1 torture=${VMAN_TEST_TORTURE:-60}" \
		-drive "file=$kvm/root.raw,format=raw,if=none,id=root,snapshot=on,cache=unsafe" -device virtio-blk-pci,drive=root \
		-drive "file=$kvm/job.raw,format=raw,if=none,id=job,cache=unsafe" -device virtio-blk-pci,drive=job \
		-netdev user,id=net,restrict=on -device virtio-net-pci,netdev=net,romfile= \
		-device virtio-rng-pci -chardev "file,id=console,path=$console" -serial chardev:console -monitor none
	grep -a '^kvm guest' "$console"
	grep -aq '^kvm guest: the job ended' "$console"
}

status=0
for n in $(seq "$lines"); do
	read -r _ dir args < <(sed -n "${n}p" "$out/tests")
	begin=$SECONDS verdict=FAIL
	if boot "$n" || { echo "kvm guest: line $n did not finish, again" && boot "$n"; }; then
		! grep -aq 'the job ended with status 0' "$out/console-$n" || verdict='ok  '
	else
		tail -c 1000 "$out/console-$n"
	fi
	debugfs -R "dump /log/$n $out/$n" "$kvm/job.raw" 2>/dev/null
	{
		cat "$out/$n"
		printf '%s\tvmand/%s (%s)\t%ds\n' "$verdict" "$dir" "${args//[\'\"]/}" $((SECONDS - begin))
	} | awk -v counts="$out/counts-$n" -f scripts/test.awk || status=1
done
debugfs -R "rdump /coverage $out" "$kvm/job.raw" 2>/dev/null
go tool covdata percent -i="$out/coverage" | awk '$1 == "vmand/qemu" { print "coverage of vmand/qemu by the daemons: " $3 }'
awk '{ passed += $1; failed += $3 } END { print "under KVM: " passed " passed, " failed " failed" }' "$out"/counts-*
exit $status
