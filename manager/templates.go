package manager

import (
	"context"
	"time"

	"vmand/vm"
)

// Templates makes and deletes templates.
type Templates struct{ *Engine }

// recordTimeout bounds operations that only record something.
const recordTimeout = time.Minute

var templateCreate = verb{
	kind: vm.TemplateCreate, timeout: recordTimeout,
	cleanup: leavesNothing, reached: recordedWithIntent, answer: vm.AnswerCreated,
}

var templateDelete = verb{
	kind: vm.TemplateDelete, timeout: recordTimeout,
	cleanup: leavesNothing, reached: recordedWithIntent, answer: vm.AnswerNothing,
}

// A recording is an action that is over when its intent is recorded.
type recording func(context.Context) (vm.Change, error)

func (f recording) intent(ctx context.Context, _ *run) (vm.Change, error) { return f(ctx) }

// Create records a new template. It fails with [vm.CodeInvalid] if this host cannot give its
// vCPUs or RAM to a VM.
func (s *Templates) Create(ctx context.Context, t vm.Template) (vm.Template, error) {
	if err := t.Check(); err != nil {
		return vm.Template{}, err
	}
	if field, clause := s.driver.Limits(ctx).Exceeded(t); field != "" {
		return vm.Template{}, vm.InvalidField(field, "%s", clause)
	}
	t.CreatedAt = now()
	record := recording(func(context.Context) (vm.Change, error) { return vm.Change{NewTemplate: &t}, nil })
	r, err := s.begin(ctx, templateCreate.request(record, vm.TemplateResource(t.Name)))
	if err != nil {
		return vm.Template{}, err
	}
	return *r.intended.Template, nil
}

// Delete deletes the record of a template. It fails with [vm.CodeInUse] while VMs use it.
func (s *Templates) Delete(ctx context.Context, name string, match vm.Match) error {
	record := recording(func(ctx context.Context) (vm.Change, error) {
		t, err := s.store.Template(ctx, name)
		if err != nil {
			return vm.Change{}, err
		}
		return vm.Change{DeleteTemplate: name}, match.Check("template "+name, t.Version())
	})
	_, err := s.begin(ctx, templateDelete.request(record, vm.TemplateResource(name)))
	return err
}
