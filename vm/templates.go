package vm

import (
	"context"
	"time"
)

const templateTimeout = time.Minute

// CreateTemplate records a new template.
func (m *Manager) CreateTemplate(ctx context.Context, t Template) (Template, error) {
	if !ValidTemplateName(t.Name) {
		return Template{}, invalidField("/name", "must be 1 to 63 of a-z, 0-9, '-', '.' and '_', and begin and end with a letter or a digit")
	}
	if t.CPUCount < 1 || t.CPUCount > MaxCPUs {
		return Template{}, invalidField("/cpu_count", "must be 1 to %d", MaxCPUs)
	}
	if t.RAMMiB < 1 || t.RAMMiB > MaxRAMMiB {
		return Template{}, invalidField("/ram_amount", "must be 1 to %d MiB", MaxRAMMiB)
	}
	t.CreatedAt = now()
	_, err := m.begin(ctx, change{
		kind: TemplateCreate, resources: []string{TemplateResource(t.Name)}, timeout: templateTimeout,
		intent: func(context.Context, *run) (Change, error) { return Change{NewTemplate: &t}, nil },
	})
	if err != nil {
		return Template{}, err
	}
	return m.store.Template(ctx, t.Name)
}

// DeleteTemplate forgets a template that no VM is made of.
func (m *Manager) DeleteTemplate(ctx context.Context, name string, match Match) error {
	_, err := m.begin(ctx, change{
		kind: TemplateDelete, resources: []string{TemplateResource(name)}, timeout: templateTimeout,
		intent: func(ctx context.Context, _ *run) (Change, error) {
			t, err := m.store.Template(ctx, name)
			if err != nil {
				return Change{}, err
			}
			return Change{DeleteTemplate: name}, match.check("template "+name, Version{Seq: t.Seq})
		},
	})
	return err
}
