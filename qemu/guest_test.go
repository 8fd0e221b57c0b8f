package qemu

import (
	"os"
	"path/filepath"
	"testing"
)

// The guests of the tests are boot sectors. They start in 16-bit real mode at 0x7c00,
// after SeaBIOS has set up the q35 board. Its power management registers are at 0x600
// (status), 0x602 (enable) and 0x604 (control).
var (
	// Writes "go to S5" to the control register, then: 1: hlt; jmp 1b
	guestPowersOff = "\xba\x04\x06\xb8\x00\x20\xef\xf4\xeb\xfd"
	// cli; 1: hlt; jmp 1b
	guestDeaf = "\xfa\xf4\xeb\xfd"
	// Enables the power button. At every timer tick it checks whether the button was
	// pressed (bit 8 of the status), and powers off if so.
	guestObeys = "\xba\x02\x06\xb8\x00\x01\xef\xba\x00\x06\xfb\xf4\xed\xf6\xc4\x01\x74\xf8\xba\x04\x06\xb8\x00\x20\xef\xeb\xef"
	// Writes "hi\n" to the first serial port, then sleeps.
	guestSaysHi = "\xba\xf8\x03\xb0\x68\xee\xb0\x69\xee\xb0\x0a\xee\xf4\xeb\xfd"
	// Writes "x" to the first serial port for ever, as fast as the port accepts it.
	guestChatters = "\xba\xf8\x03\xb0\x78\xee\x83\xc2\x05\xec\xa8\x20\x74\xfb\x83\xea\x05\xeb\xf0"
	// Writes 0, 1, 2, … 255, 0, … to the first serial port for ever.
	guestCounts = "\xba\xf8\x03\x31\xdb\x88\xd8\xee\x43\x83\xc2\x05\xec\xa8\x20\x74\xfb\x83\xea\x05\xeb\xef"
	// Echoes the input of the first serial port.
	guestEchoes = "\xba\xfd\x03\xec\xa8\x01\x74\xfb\xba\xf8\x03\xec\xee\xba\xfd\x03\xeb\xf1"
	// Reports a panic to the pvpanic device.
	guestPanics = "\xba\x05\x05\xb0\x01\xee\xf4\xeb\xfd"
	// If byte 0x7e of the CMOS is 0, sets it to 1 and resets the machine through
	// port 0xcf9; else writes "r\n" to the first serial port and sleeps.
	guestResetsOnce = "\xb0\x7e\xe6\x70\xe4\x71\x84\xc0\x75\x0d\xb0\x01\xe6\x71\xba\xf9\x0c\xb0\x06\xee\xf4\xeb\xfd" +
		"\xba\xf8\x03\xb0\x72\xee\xb0\x0a\xee\xeb\xf2"
	// Writes 64 sectors at a time, through the BIOS (int 13h, ah=43h), to a disk of
	// 8 MiB except its beginning; then "done\n" to the first serial port.
	guestWrites = "\x31\xc0\x8e\xd8\x8e\xd0\xbc\x00\x7c\xbe\x38\x7c\xb8\x00\x43\xcd\x13\x66\x81\x44\x08\x40\x00\x00\x00\x66\x81\x7c\x08\x00\x40" +
		"\x00\x00\x72\xe9\xba\xf8\x03\xb0\x64\xee\xb0\x6f\xee\xb0\x6e\xee\xb0\x65\xee\xb0\x0a\xee\xf4\xeb\xfd\x10\x00\x40\x00\x00\x00" +
		"\x00\x10\x40\x00\x00\x00\x00\x00\x00\x00"
	// Sets the watchdog at 00:05.0 to its shortest time, in its register 0x60 (bit
	// 2: count at 1 MHz), starts it, in 0x68 (bit 1), and sleeps. The watchdog fires
	// after two seconds.
	guestStarvesWatchdog = "\x66\xb8\x60\x28\x00\x80\xba\xf8\x0c\x66\xef\xb8\x04\x00\xba\xfc\x0c\xef\x66\xb8\x68\x28\x00\x80\xba\xf8\x0c\x66\xef\xb0\x02" +
		"\xba\xfc\x0c\xee\xf4\xeb\xfd"
	// Releases every PCI device that QEMU asks for: at every timer tick, for each
	// bus, selected at 0xcd0, it writes the requests in 0xcc4 back to 0xcc8 (QEMU's
	// docs/specs/acpi_pci_hotplug.txt, with the base of the q35 board).
	guestEjects = "\x66\x31\xdb\xba\xd0\x0c\x66\x89\xd8\x66\xef\xba\xc4\x0c\x66\xed\xba\xc8\x0c\x66\xef\x43\x83\xe3\x1f\x75\xe8\xfb\xf4\xeb\xe4"
)

// guestWritesBytes is how many bytes guestWrites writes.
const guestWritesBytes = 8*mib - 64*512

// writeGuest writes a raw disk of 1 MiB with a boot sector.
func writeGuest(t testing.TB, dir, code string) string {
	t.Helper()
	disk := make([]byte, mib)
	copy(disk, code)
	disk[510], disk[511] = 0x55, 0xaa
	f, err := os.CreateTemp(dir, "guest, with a comma=*.raw") // every path must work
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(disk); err != nil {
		t.Fatal(err)
	}
	return filepath.Clean(f.Name())
}
