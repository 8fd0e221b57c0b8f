package vm

func (c CloudInit) check(prefix string) error { return nil }
func (c CloudInit) masked() CloudInit         { return c }
func (s Seed) InstanceID(v VM) string         { return v.UUID }
func seedFiles(v VM, s Seed, networks map[string]VirtualNetwork) map[string][]byte {
	return nil
}
func maskSeedFile(name string, content []byte) string { return string(content) }
