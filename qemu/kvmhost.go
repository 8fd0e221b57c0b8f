package qemu

import (
	"bufio"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmand/host"
)

// kvmModules returns the names of the loaded kernel modules of KVM, such as kvm and
// kvm_intel.
func kvmModules() []string {
	paths, _ := filepath.Glob("/sys/module/kvm*")
	for i, path := range paths {
		paths[i] = filepath.Base(path)
	}
	return paths
}

// kvmGroups returns the group that may use the KVM device, if it is not root's. It is read
// for each process: the kernel module may be loaded, and udev may set the group, after
// vmand has started.
func kvmGroups() []uint32 {
	var st unix.Stat_t
	if err := unix.Stat(kvmDevice, &st); err == nil && st.Mode&0o060 == 0o060 && st.Gid != 0 {
		return []uint32{st.Gid}
	}
	return nil
}

// runAs returns the account of QEMU with the group of the KVM device. A vmand that is not
// root cannot change its groups.
func (d *Driver) runAs() host.Account {
	a := d.account
	if os.Geteuid() == 0 {
		a.Groups = kvmGroups()
	}
	return a
}

// A hostCPU is what a host says about its hardware virtualization.
type hostCPU struct {
	module string // of KVM for this CPU; empty if the CPU has no virtualization or hides it
	loaded bool   // the module is loaded
	// off reports that the firmware has disabled virtualization. The kernel then hides the
	// flag of the CPU.
	off bool
}

// lookAtHost reads the CPU's flags, the modules and the kernel log below a root directory.
func lookAtHost(root string) hostCPU {
	var h hostCPU
	switch flags := strings.Fields(cpuInfo(root)["flags"]); {
	case slices.Contains(flags, "vmx"):
		h.module = "kvm_intel"
	case slices.Contains(flags, "svm"):
		h.module = "kvm_amd"
	}
	if h.module != "" {
		_, err := os.Stat(filepath.Join(root, "sys/module", h.module))
		h.loaded = err == nil
	}
	h.off = firmwareDisabled(filepath.Join(root, "dev/kmsg"))
	return h
}

// cpuInfo returns what the kernel below a root directory says about its first CPU. All
// CPUs are alike. It is empty if that cannot be read.
func cpuInfo(root string) map[string]string {
	info := map[string]string{}
	f, err := os.Open(filepath.Join(root, "proc/cpuinfo"))
	if err != nil {
		return info
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() && lines.Text() != "" {
		key, value, _ := strings.Cut(lines.Text(), ":")
		info[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	return info
}

// firmwareDisabled reports whether the kernel log says that the firmware disabled
// virtualization: "VMX (outside TXT) disabled by BIOS", "kvm: disabled by bios",
// "SVM disabled (by BIOS) in MSR_VM_CR". It reads at most 4,096 records.
func firmwareDisabled(kmsg string) bool {
	fd, err := unix.Open(kmsg, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	record := make([]byte, 8192)
	for range 4096 {
		n, err := unix.Read(fd, record)
		if err == unix.EPIPE { // records were overwritten
			continue
		}
		if err != nil || n == 0 {
			return false
		}
		text := strings.ToLower(string(record[:n]))
		virtualization := strings.Contains(text, "vmx") || strings.Contains(text, "svm") || strings.Contains(text, "kvm")
		if virtualization && strings.Contains(text, "disabled") && strings.Contains(text, "bios") {
			return true
		}
	}
	return false
}

// fix returns the command or setting that makes KVM usable, empty if the host has no
// hardware virtualization. why is the reason why KVM does not work for an account.
func (h hostCPU) fix(why error, a host.Account) string {
	text := strings.ToLower(why.Error())
	switch {
	case h.module == "" && h.off:
		return "enable virtualization (VT-x or SVM) in the setup of the host's firmware"
	case h.module == "":
		return ""
	case h.off:
		return "enable virtualization (VT-x or SVM) in the setup of the host's firmware, then modprobe " + h.module
	case !h.loaded || strings.Contains(text, "does not exist"):
		return "run: modprobe " + h.module
	case strings.Contains(text, "permission denied"):
		if os.Geteuid() == 0 {
			return "run: chgrp kvm " + kvmDevice + " && chmod 660 " + kvmDevice
		}
		return "run: usermod --append --groups kvm " + accountName(a) + ", then restart vmand"
	case strings.Contains(text, "operation not permitted"):
		return "allow the device in vmand's control group: DeviceAllow=" + kvmDevice + " rw"
	case strings.Contains(text, "device or resource busy"):
		return "end the other hypervisor on this host, such as VirtualBox, which has the CPU's virtualization"
	}
	return "read the kernel log: dmesg | grep -i kvm"
}

func accountName(a host.Account) string {
	id := strconv.Itoa(a.UID)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}
