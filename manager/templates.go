package manager

import (
	"context"
	"time"

	"vmand/vm"
)

const templateTimeout = time.Minute

// Create records a new template.
func (s *Templates) Create(ctx context.Context, t vm.Template) (vm.Template, error) {
	if !vm.ValidTemplateName(t.Name) {
		return vm.Template{}, vm.InvalidField("/name", "must be 1 to 63 of a-z, 0-9, '-', '.' and '_', and begin and end with a letter or a digit")
	}
	if t.CPUCount < 1 || t.CPUCount > vm.MaxCPUs {
		return vm.Template{}, vm.InvalidField("/cpu_count", "must be 1 to %d", vm.MaxCPUs)
	}
	if t.RAMMiB < 1 || t.RAMMiB > vm.MaxRAMMiB {
		return vm.Template{}, vm.InvalidField("/ram_amount", "must be 1 to %d MiB", vm.MaxRAMMiB)
	}
	t.CreatedAt = now()
	_, err := s.begin(ctx, change{
		kind: vm.TemplateCreate, resources: []string{vm.TemplateResource(t.Name)}, timeout: templateTimeout,
		intent: func(context.Context, *run) (vm.Change, error) { return vm.Change{NewTemplate: &t}, nil },
	})
	if err != nil {
		return vm.Template{}, err
	}
	return s.store.Template(ctx, t.Name)
}

// Delete forgets a template that no VM is made of.
func (s *Templates) Delete(ctx context.Context, name string, match vm.Match) error {
	_, err := s.begin(ctx, change{
		kind: vm.TemplateDelete, resources: []string{vm.TemplateResource(name)}, timeout: templateTimeout,
		intent: func(ctx context.Context, _ *run) (vm.Change, error) {
			t, err := s.store.Template(ctx, name)
			if err != nil {
				return vm.Change{}, err
			}
			return vm.Change{DeleteTemplate: name}, match.Check("template "+name, t.Version())
		},
	})
	return err
}
