#!/bin/bash
# job.sh runs in the KVM guest, in the directory of its disk. It runs the line of `tests` that
# the kernel option job= numbers: the name of a test binary, the directory of its package,
# and arguments. It leaves the output in log/ and the coverage of the daemons in coverage/.
option() { tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p"; }
n=$(option job)
read -r binary dir args < <(sed -n "${n}p" tests)
mkdir -p log coverage
export VMAN_TEST_QEMU=required VMAN_TEST_ACCEL=kvm VMAN_TEST_GUEST=/job/guest
export VMAN_TEST_TORTURE=$(option torture)
export VMAN_TEST_BINARY=/job/vmand-test VMAN_TEST_FAILPOINT_BINARY=/job/vmand-failpoints
cat >vmand-test <<'END'
#!/bin/bash
GOCOVERDIR=/job/coverage exec -a "$0" /job/vmand-cover "$@"
END
chmod 755 . vmand-test
# One test at a time: guests that boot at the same time break the emulated SVM.
cd "src/$dir" && eval "exec /job/$binary.test -test.v -test.parallel=1 -test.timeout=30m $args" >"/job/log/$n" 2>&1
