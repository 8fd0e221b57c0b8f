# inside.sh — the test of the package and the service on a bare Debian 12 with systemd. The file
# /test/part says which of the two boots this is. It makes /test/ok if everything is as it must be.
set -uo pipefail
cd /test
socket=/run/vman/vmand.sock
old=$(ls vmand_1.0.0*.deb) new=$(ls vmand_1.1.0*.deb)

fail() {
	echo "FAILED: $*"
	for vm in $(api GET /vms | grep -o '"id":"[a-z0-9-]*","image"' | cut -d'"' -f4); do api GET "/vms/$vm"; done
	journalctl -u vmand -u vmand-guests -o cat --no-pager | grep -v '"msg":"request"' | tail -n 40
	systemctl poweroff --force
	exit 1
}
step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
api() { # METHOD PATH [BODY]
	curl -sS --max-time 90 --unix-socket $socket -X "$1" "http://localhost$2" -H 'Prefer: wait=60' ${3:+-H 'Content-Type: application/json' -d "$3"}
}
# field VM NAME prints a member of a VM, without those of its parts.
field() { api GET "/vms/$1" | sed 's/^{//; s/}$//; :a; s/{[^{}]*}//; ta' | grep -o "\"$2\":[^,}]*" | head -n 1 | cut -d: -f2- | tr -d '"'; }
# eventually SECONDS WHAT COMMAND... waits until the command succeeds.
eventually() {
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || fail "$what: $*"
		sleep 0.2
	done
}
is() { [ "$(field "$1" "$2")" = "$3" ]; }
active() { [ "$(systemctl is-active "$1")" = active ]; }
inactive() { ! active "$1"; }
qemu() { pgrep -f "qemu-system.*guest=$1[ ,]"; }
console() { grep -aq "$2" "/var/lib/vman/vms/$1/serial.log"; }
main_pid() { systemctl show -p MainPID --value vmand; }
# end SIGNAL waits for a process of vmand and signals it. `kill PID` of the pid 0 would signal this
# script.
end() {
	eventually 60 "a vmand runs" sh -c '[ "$(systemctl show -p MainPID --value vmand)" != 0 ]'
	was=$(main_pid)
	[ "$was" = 0 ] || kill "-$1" "$was"
}
replaced() { local now; now=$(main_pid); [ "$now" != 0 ] && [ "$now" != "$was" ]; }
answers() { api GET "/vms/web-1" | grep -q '"state"'; }
version_is() { api GET /health | grep -q "\"version\":\"$1\""; }
# untouched WHAT [VERSION]: VM web-1 is the same process and is controlled.
untouched() {
	eventually 60 "vmand answers after $1" answers
	[ -z "${2:-}" ] || version_is "$2" || fail "after $1 the version is not $2: $(api GET /health)"
	[ "$(qemu web-1)" = "$pid" ] || fail "after $1 the process of VM web-1 is '$(qemu web-1)', was $pid"
	is web-1 state running || fail "after $1 VM web-1 is $(field web-1 state)"
	step "$1"
}
install() { apt-get install -y -qq --no-install-recommends --allow-downgrades "$@" >apt.log 2>&1 || fail "apt-get install $*: $(cat apt.log)"; }
upload() { # NAME FILE
	curl -sS --max-time 120 --unix-socket $socket -H 'Content-Type: application/octet-stream' --upload-file "$2" -X POST \
		"http://localhost/images?name=$1&format=qcow2" | grep -q '"name"' || fail "upload of $1"
	eventually 120 "image $1 is available" sh -c "curl -sS --unix-socket $socket http://localhost/images/$1 | grep -q '\"state\":\"available\"'"
}
logged() { journalctl -u vmand -o cat --no-pager | grep -qF -- "$1"; }

part_install() {
	ip link set lo up
	! command -v vmand >/dev/null || fail "vmand is installed already"
	install ./"$old"
	active vmand || fail "vmand does not run after its installation"
	active vmand-guests || fail "vmand-guests does not run after the installation"
	for unit in vmand vmand-guests; do systemctl -q is-enabled $unit || fail "$unit is not enabled"; done
	vman --version | grep -q 'vmand 1.0.0 (commit [0-9a-f]*, 20' || fail "vman --version: $(vman --version)"
	step "apt install on a bare Debian"

	# The first VM by two commands.
	curl -sS --unix-socket $socket http://localhost/templates -H 'Content-Type: application/json' -d '{"name":"small","cpu_count":1,"ram_amount":96}' >/dev/null
	curl -sS --unix-socket $socket http://localhost/vms -H 'Content-Type: application/json' -d '{"template_name":"small","name":"first","start":true}' >/dev/null
	eventually 60 "the first VM runs" is first state running
	api POST /vms/first/actions/stop '{"force":true}' >/dev/null
	eventually 30 "the first VM stops" is first state stopped
	step "the first VM"

	systemd-analyze security --no-pager --threshold=33 vmand >security.log || fail "security: $(cat security.log)"
	upload normal disk-normal.qcow2
	upload deaf disk-deaf.qcow2
	api POST /vms '{"template_name":"small","name":"web-1","image":"normal","start":true}' >/dev/null
	eventually 60 "VM web-1 runs" is web-1 state running
	eventually 180 "VM web-1 boots" console web-1 'VMT: ready'
	pid=$(qemu web-1)
	[ "$(stat -c %U /proc/$pid)" = vman-qemu ] || fail "QEMU runs as $(stat -c %U /proc/$pid)"
	step "VM web-1 boots as process $pid; $(api GET /health | grep -o '"network":{[^}]*}')"

	# What the hardening of the unit could break: DHCP, agent, hot-plug, forwards, cloud-init, clones.
	upload agent disk-agent.qcow2
	api POST /templates '{"name":"net","cpu_count":1,"ram_amount":256}' >/dev/null
	api POST /vms '{"template_name":"net","name":"net-1","image":"agent","start":true,"cloud_init":{"hostname":"net-1"}}' >/dev/null
	eventually 240 "the agent of VM net-1 answers" sh -c "curl -sS --unix-socket $socket http://localhost/vms/net-1/guest | grep -q interfaces"
	api GET /vms/net-1 | grep -q '"dhcp_ack_at":"' || fail "VM net-1 has no lease: $(api GET /vms/net-1)"
	api POST /vms/net-1/exec '{"command":["/bin/uname","-a"]}' | grep -q Linux || fail "exec in VM net-1"
	ip=$(field net-1 local_ip)
	curl -sS --max-time 20 "http://$ip/" >curl.log 2>&1 || fail "VM net-1 does not answer at $ip: $? $(cat curl.log)"
	api POST /vms/net-1/port_forwards '{"host_port":8080,"guest_port":80}' | grep -q '"id"' || fail "port forward"
	curl -sS --max-time 20 http://127.0.0.1:8080/ >curl.log 2>&1 || fail "the port forward does not work: $? $(cat curl.log)"
	disk=$(api POST /disks '{"size":0.5}' | grep -o '"id":"disk-[a-z0-9]*"' | cut -d'"' -f4)
	api POST "/disks/$disk/attach" '{"vm_id":"net-1"}' | grep -q '"state":"attached"' || fail "attach of $disk"
	api POST "/disks/$disk/detach" '{}' | grep -q '"state":"available"' || fail "detach of $disk"
	api POST "/vms/net-1/nics" '{"network":"vman0"}' | grep -q '"slot":1' || fail "a second NIC"
	api POST /vms '{"template_name":"small","name":"clone","image":"normal","full_clone":true}' | grep -q '"id":"clone"' || fail "a full clone"
	api POST /vms/net-1/actions/stop '{"force":true}' >/dev/null
	for vm in net-1 clone; do
		eventually 60 "VM $vm is stopped" is $vm state stopped
		curl -sS --unix-socket $socket -X DELETE "http://localhost/vms/$vm"
	done
	step "network, agent, hot-plug and clones work in the hardened unit"

	# The configuration, edited; then what may happen to a service.
	sed -i 's/^  interval: 5s/  interval: 2s/' /etc/vman/config.yaml
	systemctl restart vmand || fail "restart"
	untouched restart
	sed -i 's/^  level: info/  level: debug/; s/^  parallel: 8/  parallel: 2/' /etc/vman/config.yaml
	systemctl reload vmand || fail "reload"
	eventually 20 "the reload is logged" logged '"settings":["log.level"]'
	untouched reload
	sed -i 's/^  level: debug/  level: loud/' /etc/vman/config.yaml
	! systemctl reload vmand 2>/dev/null || fail "an invalid configuration is reloaded"
	untouched "reload of an invalid configuration"
	systemctl restart vmand 2>/dev/null
	sleep 3
	[ "$(systemctl show -p ExecMainStatus --value vmand) $(systemctl show -p NRestarts --value vmand)" = "78 0" ] ||
		fail "an invalid configuration: $(systemctl show -p ExecMainStatus,NRestarts vmand)"
	sed -i 's/^  level: loud/  level: info/' /etc/vman/config.yaml
	systemctl start vmand || fail "start"
	untouched "restart with an invalid configuration"
	systemctl daemon-reload
	untouched daemon-reload
	for n in 1 2 3 4 5 6 7 8; do # the service starts it again after one second
		end KILL
		sleep 0.2
	done
	eventually 60 "vmand is active" active vmand
	untouched "eight kill -9 in ten seconds"
	for signal in ABRT SEGV; do
		end $signal
		eventually 60 "another vmand runs after SIG$signal" replaced
		untouched "a crash by SIG$signal"
	done
	mkdir -p /run/systemd/system/vmand.service.d
	printf '[Service]\nType=exec\nIgnoreSIGPIPE=no\nExecStart=\nExecStart=/bin/sleep infinity\n' >/run/systemd/system/vmand.service.d/sleep.conf
	systemctl daemon-reload
	for signal in HUP INT PIPE TERM; do # the ends that systemd takes for clean ones, before vmand handles them
		systemctl restart vmand
		end $signal
		eventually 60 "the service is started again after SIG$signal" replaced
	done
	rm -r /run/systemd/system/vmand.service.d
	systemctl daemon-reload
	systemctl restart vmand
	untouched "ends that systemd takes for clean"

	# A vmand that hangs.
	mkdir -p /run/systemd/system/vmand.service.d
	printf '[Service]\nWatchdogSec=15s\nTimeoutAbortSec=2s\n' >/run/systemd/system/vmand.service.d/watchdog.conf
	systemctl daemon-reload
	systemctl restart vmand || fail "restart with a short watchdog"
	end STOP
	eventually 90 "the watchdog replaces a vmand that hangs" replaced
	rm -r /run/systemd/system/vmand.service.d
	systemctl daemon-reload
	systemctl restart vmand
	untouched "a hang that the watchdog ends"

	# Sockets of systemd.
	systemctl stop vmand
	systemctl -q enable vmand.socket 2>/dev/null
	systemctl start vmand.socket || fail "vmand.socket"
	inactive vmand || fail "vmand runs without a connection"
	answers || fail "no answer by the socket of systemd"
	active vmand || fail "the connection has not started vmand"
	code=$(curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8000/vms)
	[ "$code" = 401 ] || fail "TCP without a token answers $code"
	code=$(curl -s -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $(cat /var/lib/vman/admin.token)" http://127.0.0.1:8000/vms)
	[ "$code" = 200 ] || fail "TCP with a token answers $code"
	end KILL
	answers || fail "a connection during a restart is not held"
	untouched "sockets of systemd"
	systemctl -q disable --now vmand.socket 2>/dev/null
	systemctl restart vmand
	untouched "own sockets again"

	# Packages.
	install ./"$new"
	untouched upgrade 1.1.0
	grep -q '^  interval: 2s' /etc/vman/config.yaml || fail "the upgrade lost an edit of the configuration"
	install ./"$old"
	untouched "downgrade to a version that knows the database" 1.0.0
	install ./"$new"
	systemctl stop vmand
	version=$(dd if=/var/lib/vman/vman.db bs=1 skip=60 count=4 2>/dev/null | od -An -tx1)
	printf '\0\0\3\347' | dd of=/var/lib/vman/vman.db bs=1 seek=60 conv=notrunc 2>/dev/null # user_version 999
	! systemctl start vmand 2>/dev/null || fail "a newer database is accepted"
	sleep 3
	[ "$(systemctl show -p ExecMainStatus --value vmand) $(systemctl show -p NRestarts --value vmand)" = "65 0" ] ||
		fail "a newer database: $(systemctl show -p ExecMainStatus,NRestarts vmand)"
	logged "install the newer vmand that wrote it" || fail "the journal does not say the way out"
	printf "$(printf '%s' "$version" | sed 's/ /\\x/g')" | dd of=/var/lib/vman/vman.db bs=1 seek=60 conv=notrunc 2>/dev/null
	systemctl start vmand || fail "start with the old database"
	untouched "downgrade to a version that does not know the database"
	apt-get remove -y -qq vmand >/dev/null 2>&1 || fail remove
	[ "$(qemu web-1)" = "$pid" ] || fail "the removal ended VM web-1"
	inactive vmand || fail "vmand runs after its removal"
	install ./"$new"
	untouched "removal and installation" 1.1.0
	grep -q '^  interval: 2s' /etc/vman/config.yaml || fail "the removal lost an edit of the configuration"
	apt-get purge -y -qq vmand >/dev/null 2>&1 || fail purge
	[ "$(qemu web-1)" = "$pid" ] || fail "the purge ended VM web-1"
	[ ! -e /etc/vman ] && [ -e /var/lib/vman/vman.db ] || fail "after a purge: $(ls -d /etc/vman /var/lib/vman/vman.db 2>&1)"
	install ./"$new"
	untouched "purge and installation" 1.1.0
	systemctl -q is-enabled vmand-guests || fail "vmand-guests is not enabled after the purge"
	systemctl -q disable vmand-guests 2>/dev/null && systemctl -q enable vmand-guests 2>/dev/null
	systemctl restart vmand-guests
	untouched "stop of vmand-guests without a shutdown"
	issues=$(api GET /observer/status | grep -o '"last_issues":\[[^]]*\]')
	[ "$issues" = '"last_issues":[]' ] || step "issues of the observer: $issues"

	# Five guests, and the end of the host.
	new() { api POST /vms "{\"template_name\":\"small\",\"name\":\"$1\",\"image\":\"$2\",\"start\":true,$3}" >/dev/null; }
	new g1 normal '"autostart":true,"autostart_order":1'
	new g2 normal '"autostart":true,"autostart_order":2'
	new g3 normal '"autostart":false'
	new deaf deaf '"autostart":true,"autostart_order":3,"shutdown_timeout":5'
	for vm in g1 g2 g3; do eventually 180 "VM $vm boots" console $vm 'VMT: ready'; done
	eventually 60 "VM deaf runs" is deaf state running
	step "five guests run; the host shuts down"
	touch ok
	systemctl --no-block poweroff
}

part_boot() {
	eventually 90 "vmand is active" active vmand
	step "the host has booted again"
	journalctl -b -1 -u vmand-guests -o cat --no-pager | grep VM
	line() { journalctl -b -1 -u vmand-guests -o cat --no-pager | grep -nF "$1" | head -n 1 | cut -d: -f1; }
	for vm in web-1 g3 deaf g2 g1; do [ -n "$(line "VM $vm: stopped after")" ] || fail "VM $vm was not stopped"; done
	before() { [ "$(line "VM $1: stopped")" -lt "$(line "VM $2: asking")" ] || fail "VM $1 was not stopped before VM $2"; }
	before web-1 deaf # without autostart
	before g3 deaf
	before deaf g2 # in the reverse order of their start
	before g2 g1
	[ -n "$(line 'the guest did not power off')" ] || fail "nothing was done about the deaf guest"
	[ -n "$(line 'no VM runs; stopped 5 in')" ] || fail "the stop has not ended"
	for vm in g1 g2 deaf; do eventually 120 "VM $vm starts with the host" is $vm state running; done
	for vm in g3 web-1; do
		[ "$(field $vm state) $(field $vm state_reason) $(field $vm desired_state)" = "stopped host-shutdown running" ] ||
			fail "VM $vm is $(field $vm state) $(field $vm state_reason) $(field $vm desired_state)"
	done
	step "the VMs with autostart run again"
	touch ok
	for vm in g1 g2 deaf; do api POST /vms/$vm/actions/stop '{"force":true}' >/dev/null; done
	systemctl --no-block poweroff
}

"part_$(cat part)"
