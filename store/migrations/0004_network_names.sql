-- Names, DHCP options and network boot of networks: JSON arrays, pxe is a JSON object.
-- boot_device is NULL for the root disk.
ALTER TABLE networks ADD COLUMN search_domains TEXT CHECK (json_type(search_domains) = 'array');
ALTER TABLE networks ADD COLUMN dhcp_options TEXT CHECK (json_type(dhcp_options) = 'array');
ALTER TABLE networks ADD COLUMN pxe TEXT CHECK (json_type(pxe) = 'object');
ALTER TABLE networks ADD COLUMN dns_records TEXT CHECK (json_type(dns_records) = 'array');
ALTER TABLE networks ADD COLUMN dns_forwarders TEXT CHECK (json_type(dns_forwarders) = 'array');
ALTER TABLE vms ADD COLUMN boot_device TEXT CHECK (boot_device IN ('network'));
