// Package host holds what vmand does to the host itself and what several packages
// need: it starts a program (account, nice value, session, inherited files, limits, life
// time), writes a file durably, and reads the processes and sockets of the host.
//
// Packages qemu and network use it for QEMU, qemu-img and passt. It knows nothing
// of VMs and imports no other package of this module.
package host
