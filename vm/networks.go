package vm

import "context"

// networksOf returns the networks that a VM's NICs are on, by name.
func (m *Manager) networksOf(ctx context.Context, v VM) (map[string]VirtualNetwork, error) {
	networks := make(map[string]VirtualNetwork, len(v.NICs))
	for _, n := range v.NICs {
		if _, known := networks[n.Network]; known {
			continue
		}
		net, err := m.store.Network(ctx, n.Network)
		if err != nil {
			return nil, err
		}
		networks[n.Network] = net
	}
	return networks, nil
}
