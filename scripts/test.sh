#!/usr/bin/env bash
# test.sh — runs every test, with the race detector, real QEMU and the test guest. It
# fails if a test fails or is skipped, if a daemon has a data race, or if less than
# MIN_COVERAGE percent of the hand-written statements ran. It leaves build/test.log and
# build/coverage/.
#
# Everything is compiled once. The tests run as jobs, LANES at a time, and a job starts as
# soon as its binaries are compiled. The fail-point matrix, which takes longest, starts
# first and runs while the rest is compiled.
#
# The tests find in their environment:
#
#   VMAN_TEST_QEMU=required     a test that needs QEMU fails where there is none
#   VMAN_TEST_GUEST             the directory of the guest that test/guest/build.sh made
#   VMAN_TEST_BINARY            vmand, built with race detector and coverage
#   VMAN_TEST_FAILPOINT_BINARY  vmand, built with fail points
set -euo pipefail
cd "$(dirname "$0")/.."
MIN_COVERAGE=${MIN_COVERAGE:-90}
LANES=${LANES:-$(($(nproc) + 1))}
root=$PWD coverage=$PWD/build/coverage races=$PWD/build/races logs=$PWD/build/log tests=$PWD/build/tests

rm -rf "$coverage" "$races" "$logs" "$tests"
mkdir -p "$coverage/data" "$races" "$logs" "$tests"
export root coverage logs tests
export CGO_ENABLED=1 GORACE=atexit_sleep_ms=0 # for -race, which would sleep a second at each exit
export VMAN_TEST_QEMU=required VMAN_TEST_GUEST=$root/build/guest
export VMAN_TEST_BINARY=$root/build/vmand-test VMAN_TEST_FAILPOINT_BINARY=$root/build/vmand-failpoints
covered=$(go list ./... | grep -v /test/ | paste -sd,)
flags=(-race -cover -covermode=atomic -coverpkg="$covered")

matrix=TestEveryOperationSurvivesAKillAtEverySeam
torture=TestTorture
first='server qemu/image qemu store manager vm' # the unit tests that take longest

# plan compiles everything and prints each job as soon as it can run: its name, the
# directory of its tests, the directory of its binary in build/tests, and arguments.
plan() {
	# With cgo like go vet, so that make check has compiled most packages.
	go build -tags failpoints -o "$VMAN_TEST_FAILPOINT_BINARY" . &&
		compile e2e ./test/crash &&
		echo "matrix test/crash e2e -test.run=^$matrix\$" &&
		daemon &&
		echo "torture test/crash e2e -test.run=^$torture\$" &&
		compile e2e ./test/network ./test/api &&
		echo "network test/network e2e" &&
		echo "crash test/crash e2e -test.skip=^($matrix|$torture)\$" &&
		echo "api test/api e2e" &&
		compile unit $(units | sed 's|^|./|') &&
		{ units | grep -Fx "$(printf '%s\n' $first)" && units; } |
		awk '!seen[$0]++ { name = $0 == "." ? "main" : $0; gsub("/", "-", name); print name, $0, "unit" }'
}

# units prints the directories of the tests that are not end to end.
units() {
	go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' ./... |
		sed "s|^$root\$|.|; s|^$root/||" | grep -Evx 'test/(api|bench|crash|network)'
}

compile() { # DIRECTORY PACKAGE...
	mkdir -p "$tests/$1" && go test -c "${flags[@]}" -o "$tests/$1/" "${@:2}"
}

# daemon builds the vmand under test. A wrapper sets the directory of its coverage, because
# a test binary sets another one, and the file of its races, because no test reads the
# standard error of every daemon. It passes its name on: vmand is the client if that is vman.
daemon() {
	go build "${flags[@]}" -o build/vmand-cover . &&
		cat >"$VMAN_TEST_BINARY" <<-EOF &&
			#!/bin/bash
			GOCOVERDIR='$coverage/data' GORACE='log_path=$races/race atexit_sleep_ms=0' exec -a "\$0" '$root/build/vmand-cover' "\$@"
		EOF
		chmod +x "$VMAN_TEST_BINARY"
}

# job runs one job. When the job has ended, it prints its whole output and a verdict in the
# form of go test. The verdict also goes to the standard error, for the reader.
job() {
	local name=$1 dir=$2 begin=$SECONDS verdict='ok  ' package=vmand
	[ "$dir" = . ] || package=vmand/$dir
	(cd "$root/$dir" && exec "$tests/$3/${package##*/}.test" -test.v -test.paniconexit0 -test.timeout=20m \
		-test.parallel=4 -test.gocoverdir="$coverage/data" "${@:4}") >"$logs/$name" 2>&1 || verdict=FAIL
	{
		flock 9
		cat "$logs/$name"
		printf '%s\t%s (%s)\t%ds\n' "$verdict" "$package" "$name" $((SECONDS - begin)) | tee /dev/stderr
	} 9>"$logs/.lock"
}
export -f job

status=0
{ plan 2>"$logs/build" || echo broken; } | {
	xargs -d '\n' -n 1 -P "$LANES" bash -c '
		[ "$1" != broken ] || { cat "$logs/build"; printf "FAIL\tbuild\n"; exit; }
		job $1' job
} | tee build/test.log | awk -v counts=build/test.counts -f scripts/test.awk || status=1
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
