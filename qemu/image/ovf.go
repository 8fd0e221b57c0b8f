package image

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/xml"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The Open Virtualization Format: DSP0243 of the DMTF, versions 1 and 2. Names are matched
// without their namespaces, which differ between the versions.
const (
	maxOVF      = mib
	maxManifest = mib
	ovfDisk     = "17" // the resource type of a disk drive
	maxOVFDisks = 64
)

// ovfEnvelope is an OVF descriptor, as far as it names disks.
type ovfEnvelope struct {
	XMLName xml.Name  `xml:"Envelope"`
	Files   []ovfFile `xml:"References>File"`
	Disks   []struct {
		ID      string `xml:"diskId,attr"`
		FileRef string `xml:"fileRef,attr"`
		Parent  string `xml:"parentRef,attr"`
	} `xml:"DiskSection>Disk"`
	Systems    []ovfSystem `xml:"VirtualSystem"`
	Collection struct {
		Systems []ovfSystem `xml:"VirtualSystem"`
	} `xml:"VirtualSystemCollection"`
}

type ovfFile struct {
	ID        string `xml:"id,attr"`
	Href      string `xml:"href,attr"`
	ChunkSize string `xml:"chunkSize,attr"`
}

type ovfSystem struct {
	Items        []ovfItem `xml:"VirtualHardwareSection>Item"`
	StorageItems []ovfItem `xml:"VirtualHardwareSection>StorageItem"`
}

// ovfItem is a device of a virtual system.
type ovfItem struct {
	Type     string   `xml:"ResourceType"`
	Instance string   `xml:"InstanceID"`
	Parent   string   `xml:"Parent"`
	Address  string   `xml:"AddressOnParent"`
	Hosts    []string `xml:"HostResource"`
}

// parseOVF returns the names of the files with the disks of an OVF descriptor: in the order in
// which the virtual system has the disks, or else in that of the descriptor.
func parseOVF(b []byte) ([]string, error) {
	var e ovfEnvelope
	d := xml.NewDecoder(bytes.NewReader(b))
	d.CharsetReader = func(string, io.Reader) (io.Reader, error) {
		return nil, unsupportedf("the .ovf must be in UTF-8")
	}
	if err := d.Decode(&e); err != nil {
		return nil, damagedf("the .ovf cannot be read: %v", err)
	}
	files := map[string]string{} // by id of the file, then also by id of the disk
	for _, f := range e.Files {
		if f.ChunkSize != "" {
			return nil, unsupportedf("the .ovf has the file %.100q in several chunks", f.Href)
		}
		files["file/"+f.ID] = f.Href
	}
	var order []string
	for _, disk := range e.Disks {
		switch href, ok := files["file/"+disk.FileRef]; {
		case disk.Parent != "":
			return nil, hostilef("the disk %.100q of the .ovf has a parent", disk.ID)
		case disk.FileRef == "": // an empty disk
		case !ok:
			return nil, damagedf("the disk %.100q of the .ovf is in the file %.100q, which the .ovf does not list",
				disk.ID, disk.FileRef)
		default:
			files["disk/"+disk.ID] = href
			order = append(order, href)
		}
	}
	if used := e.diskItems(); len(used) > 0 {
		order = nil
		for _, resource := range used {
			if href, ok := files[resource]; ok {
				order = append(order, href)
			}
		}
	}
	return checkHrefs(order)
}

// diskItems returns the resources of the disk drives of the virtual systems: "disk/" or "file/"
// and an id. Drives are in the order of their controllers and of their addresses there.
func (e ovfEnvelope) diskItems() []string {
	var resources []string
	for _, system := range append(e.Systems, e.Collection.Systems...) {
		var drives []ovfItem
		for _, item := range append(system.Items, system.StorageItems...) {
			if strings.TrimSpace(item.Type) == ovfDisk && len(item.Hosts) > 0 {
				drives = append(drives, item)
			}
		}
		slices.SortStableFunc(drives, func(a, b ovfItem) int {
			return cmp.Or(compareNumbers(a.Parent, b.Parent), compareNumbers(a.Address, b.Address),
				compareNumbers(a.Instance, b.Instance))
		})
		for _, drive := range drives {
			resource := strings.TrimPrefix(strings.TrimSpace(drive.Hosts[0]), "ovf:")
			resources = append(resources, strings.TrimPrefix(resource, "/"))
		}
	}
	return resources
}

// compareNumbers compares two decimal numbers. A text that is none counts as 0.
func compareNumbers(a, b string) int {
	x, _ := strconv.ParseUint(strings.TrimSpace(a), 10, 32)
	y, _ := strconv.ParseUint(strings.TrimSpace(b), 10, 32)
	return cmp.Compare(x, y)
}

// checkHrefs returns the names of the files of disks without repetitions. It refuses those
// outside of the archive.
func checkHrefs(hrefs []string) ([]string, error) {
	var names []string
	for _, href := range hrefs {
		name, ok := memberName(href)
		if !ok || strings.Contains(href, ":") {
			return nil, hostilef("the .ovf names a file outside of the archive: %.100q", href)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	switch {
	case len(names) == 0:
		return nil, unsupportedf("the .ovf has no disk with content")
	case len(names) > maxOVFDisks:
		return nil, unsupportedf("the .ovf has %d disks, at most %d are allowed", len(names), maxOVFDisks)
	}
	return names, nil
}

// manifestLine matches a line of a manifest: SHA256(disk.vmdk)= 0123…
var manifestLine = regexp.MustCompile(`^(SHA1|SHA256|SHA512)\s*\((.+)\)\s*=\s*([0-9a-fA-F]+)$`)

// parseManifest returns the checksums of a manifest, by the name of the file.
func parseManifest(b []byte) (map[string]manifestSum, error) {
	sums := map[string]manifestSum{}
	number := 0
	for line := range strings.Lines(string(b)) {
		number++
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		m := manifestLine.FindStringSubmatch(line)
		if m == nil {
			return nil, damagedf("line %d of the manifest is no checksum of type SHA1, SHA256 or SHA512", number)
		}
		name, _ := memberName(m[2])
		want, err := hex.DecodeString(m[3])
		if _, again := sums[name]; err != nil || again {
			return nil, damagedf("line %d of the manifest is malformed or names a file again", number)
		}
		sums[name] = manifestSum{m[1], want}
		if len(sums) > maxMembers {
			return nil, unsupportedf("the manifest names more than %d files", maxMembers)
		}
	}
	return sums, nil
}

// A manifestSum is the checksum that a file must have.
type manifestSum struct {
	algorithm string
	want      []byte
}
