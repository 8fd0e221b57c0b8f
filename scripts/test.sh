#!/usr/bin/env bash
# test.sh — runs every test, with the race detector, real QEMU and the test guest, and
# fails when a test fails, when one is skipped, or when less than MIN_COVERAGE percent
# of the hand-written statements ran. Leaves build/test.log and build/coverage/.
#
# What the tests find in their environment:
#
#   VMAN_TEST_QEMU=required  a test that needs QEMU fails where there is none
#   VMAN_TEST_GUEST          directory of the guest that test/guest/build.sh made
#   VMAN_TEST_BINARY         vmand, built with race detector and coverage
set -euo pipefail
cd "$(dirname "$0")/.."
MIN_COVERAGE=${MIN_COVERAGE:-80}
coverage=$PWD/build/coverage
races=$PWD/build/races

rm -rf "$coverage" "$races"
mkdir -p "$coverage/data" "$races"
export CGO_ENABLED=1 GORACE=atexit_sleep_ms=0 # for -race; it would sleep a second at each exit
export VMAN_TEST_QEMU=required VMAN_TEST_GUEST=$PWD/build/guest VMAN_TEST_BINARY=$PWD/build/vmand-test
cover=(-race -cover -covermode=atomic -coverpkg=./...)

# `go test -cover` points GOCOVERDIR at a directory that it throws away, and nobody
# reads the standard error of every daemon: the wrapper says where both go.
go build "${cover[@]}" -o build/vmand-cover .
cat >"$VMAN_TEST_BINARY" <<EOF
#!/bin/sh
GOCOVERDIR='$coverage/data' GORACE='log_path=$races/race atexit_sleep_ms=0' exec '$PWD/build/vmand-cover' "\$@"
EOF
chmod +x "$VMAN_TEST_BINARY"

# The longest packages come first: they mostly wait, for guests and for the observer, while
# the others compute. go test keeps this order, and the repeated names are one run each.
long=(./test/crash ./test/network ./test/api ./qemu ./server)
status=0
go test -v -count=1 -timeout=40m "${cover[@]}" "${long[@]}" ./... -args -test.gocoverdir="$coverage/data" 2>&1 |
	tee build/test.log | awk -v counts=build/test.counts -f scripts/test.awk || status=1
for race in "$races"/*; do
	[ -e "$race" ] || continue
	cat "$race"
	status=1
done

# One profile of tests and daemons together, without generated code.
go tool covdata textfmt -i="$coverage/data" -o "$coverage/all"
grep -v '\.gen\.go:' "$coverage/all" >"$coverage/profile"
total=$(go tool cover -func="$coverage/profile" | tee "$coverage/functions" | awk '/^total:/ { sub("%", "", $NF); print $NF }')
echo "coverage: $total % of hand-written statements (at least $MIN_COVERAGE %)"
awk -v total="$total" -v min="$MIN_COVERAGE" 'BEGIN { exit total < min }' || status=1

grep -hE '^(fail points|torture|adoption): ' build/test.log || true
cat build/test.counts
exit $status
