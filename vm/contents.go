package vm

// OverlayOf returns the file of a disk that is a copy-on-write overlay of an image.
// sizeMiB is the wished size, 0 for that of the image; field says where.
func OverlayOf(i Image, sizeMiB int64, sizeField, imageField string) (DiskFile, error) {
	f := DiskFile{SizeMiB: sizeMiB, Image: i.Name, Base: ContentBase(i.SHA256), BaseFormat: string(i.Layout)}
	switch {
	case i.Layout == FormatISO:
		bad := InvalidField(imageField, "image %q is an ISO image, which nothing can be written to", i.Name)
		bad.Hint = "give it to a VM as a CD-ROM: cdroms"
		return f, bad
	case sizeMiB == 0:
		f.SizeMiB = i.VirtualMiB
	case sizeMiB < i.VirtualMiB:
		return f, InvalidField(sizeField, "must be at least %g GiB, the size of image %s", float64(i.VirtualMiB)/MiBPerGiB, i.Name)
	}
	return f, CheckDiskSize(f.SizeMiB, sizeField)
}

func CheckDiskSize(mib int64, field string) error {
	if mib < 1 || mib > MaxDiskMiB {
		return InvalidField(field, "must be 1 MiB to %d GiB", MaxDiskMiB/MiBPerGiB)
	}
	return nil
}
