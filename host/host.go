// Package host holds the two things that vmand does to the host itself and that
// several packages need: it starts a program (account, nice value, session,
// inherited files, limits, life time) and it writes a file durably.
//
// Packages qemu and network use it for QEMU, qemu-img and passt. It knows nothing
// of VMs and imports no other package of this module.
package host
