package server

import (
	"context"
	"net/http"

	"vmand/openapi"
)

// A Health is the result of the health checks.
type Health struct {
	Database, Storage, QEMU, QEMUImg, Accel, Network, Observer, API Check
}

// A Check is the result of one health check.
type Check struct {
	Degraded bool
	Detail   string // the problem and its fix, or other information; may be empty
}

// GetHealth implements [openapi.StrictServerInterface].
func (s *Server) GetHealth(ctx context.Context, _ openapi.GetHealthRequestObject) (openapi.Response, error) {
	h := s.health(ctx)
	status, overall := http.StatusOK, openapi.HealthStatusOk
	check := func(c Check) openapi.HealthCheck {
		if c.Degraded {
			status, overall = http.StatusServiceUnavailable, openapi.HealthStatusDegraded
			return openapi.HealthCheck{Status: openapi.HealthStatusDegraded, Detail: optional(&c.Detail)}
		}
		return openapi.HealthCheck{Status: openapi.HealthStatusOk, Detail: optional(&c.Detail)}
	}
	checks := openapi.HealthChecks{
		Database: check(h.Database),
		Storage:  check(h.Storage),
		Qemu:     check(h.QEMU),
		QemuImg:  check(h.QEMUImg),
		Accel:    check(h.Accel),
		Network:  check(h.Network),
		Observer: check(h.Observer),
		Api:      check(h.API),
	}
	return answer{
		status: status,
		body: &openapi.Health{
			Status:  overall,
			Service: openapi.HealthServiceVmand,
			Version: s.o.Version,
			DryRun:  s.o.DryRun,
			Checks:  checks,
		},
	}, nil
}
