package vm

import (
	"time"
)

// A NewImage is what is asked of an image to make.
type NewImage struct {
	Name        string
	URL         string // where to download it from; empty for none
	FromDisk    string // the id of a data disk that is not attached, or of a stopped VM; empty for none
	Sum         ImageSum
	Format      ImageFormat // what it has to be; empty for any
	Description string
	Labels      map[string]string
}

// Record returns the image to be recorded, in a state and from a source.
func (n NewImage) Record(state ImageState, source string, at time.Time) (Image, error) {
	if !ValidTemplateName(n.Name) {
		return Image{}, InvalidField("/name", "must be 1 to 63 of a-z, 0-9, '-', '.' and '_', and begin and end with a letter or a digit")
	}
	if err := n.Sum.check("/"); err != nil {
		return Image{}, err
	}
	i := Image{Name: n.Name, State: state, Sum: n.Sum, Format: n.Format, Source: source, CreatedAt: at}
	return i, ImageEdits{Description: &n.Description, Labels: &n.Labels}.Apply(&i)
}

// ImageEdits are what can be changed of an image; nil leaves a thing as it is.
type ImageEdits struct {
	Description *string
	Labels      *map[string]string // in place of all there were
}

func (e ImageEdits) Apply(i *Image) error {
	if e.Description != nil {
		if err := checkDescription(*e.Description); err != nil {
			return err
		}
		i.Description = *e.Description
	}
	if e.Labels != nil {
		if err := checkLabels(*e.Labels); err != nil {
			return err
		}
		i.Labels = nil
		if len(*e.Labels) > 0 {
			i.Labels = *e.Labels
		}
	}
	return nil
}
