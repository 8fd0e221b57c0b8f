package vm

import "strings"

// A ResourceKind is the first part of a resource's name: its collection in the API.
type ResourceKind string

// The kinds of resources. Only the first five have operations. There is one daemon and one
// observer, and both have no id.
const (
	TemplateKind  ResourceKind = "templates"
	VMKind        ResourceKind = "vms"
	DiskKind      ResourceKind = "disks"
	ImageKind     ResourceKind = "images"
	NetworkKind   ResourceKind = "networks"
	OperationKind ResourceKind = "operations"
	StorageKind   ResourceKind = "storage" // its id is a path
	DaemonKind    ResourceKind = "daemon"
	ObserverKind  ResourceKind = "observer"
)

// A Resource is the name of a resource, for example "vms/web-1", in operations, locks, events
// and findings of the observer.
type Resource struct {
	Kind ResourceKind
	ID   string // unique in its kind; empty for the whole collection or the only one
}

// String returns the resource's name, such as "vms/web-1".
func (r Resource) String() string {
	if r.ID == "" {
		return string(r.Kind)
	}
	return string(r.Kind) + "/" + r.ID
}

// ParseResource is the inverse of [Resource.String]. It accepts any string: a name without a
// slash is a kind.
func ParseResource(name string) Resource {
	kind, id, _ := strings.Cut(name, "/")
	return Resource{Kind: ResourceKind(kind), ID: id}
}

// MarshalText implements [encoding.TextMarshaler].
func (r Resource) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (r *Resource) UnmarshalText(text []byte) error {
	*r = ParseResource(string(text))
	return nil
}

// TemplateResource returns the resource of a template.
func TemplateResource(name string) Resource { return Resource{TemplateKind, name} }

// VMResource returns the resource of a VM.
func VMResource(id string) Resource { return Resource{VMKind, id} }

// DiskResource returns the resource of a data disk.
func DiskResource(id string) Resource { return Resource{DiskKind, id} }

// ImageResource returns the resource of an image.
func ImageResource(name string) Resource { return Resource{ImageKind, name} }

// NetworkResource returns the resource of a network.
func NetworkResource(name string) Resource { return Resource{NetworkKind, name} }

// OperationResource returns the resource of an operation.
func OperationResource(id string) Resource { return Resource{OperationKind, id} }
