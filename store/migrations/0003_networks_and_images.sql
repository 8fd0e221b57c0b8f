-- How many consecutive host ports a forward has, from host_port on. An index cannot express
-- that two ranges overlap: the store checks that before it writes a row.
ALTER TABLE vm_host_ports ADD COLUMN ports INTEGER NOT NULL DEFAULT 1 CHECK (ports BETWEEN 1 AND 1000);

-- The IPv4 addresses that belong to the extra addresses of a NIC: with one of them, another NIC
-- would have an IPv4 or IPv6 address among the extra ones. The store checks that none is
-- assigned to another NIC. Ranges of several NICs may overlap.
CREATE TABLE vm_extra_addresses (
	vm_id    TEXT    NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
	slot     INTEGER NOT NULL,
	network  TEXT    NOT NULL REFERENCES networks (name) ON DELETE RESTRICT,
	first_ip INTEGER NOT NULL,
	last_ip  INTEGER NOT NULL CHECK (last_ip >= first_ip),
	PRIMARY KEY (vm_id, slot, first_ip, last_ip)
) STRICT, WITHOUT ROWID;

CREATE INDEX vm_extra_addresses_ip ON vm_extra_addresses (network, first_ip, last_ip);

-- Names, DHCP options and network boot of networks: JSON arrays, pxe is a JSON object.
-- boot_device is NULL for the root disk.
ALTER TABLE networks ADD COLUMN search_domains TEXT CHECK (json_type(search_domains) = 'array');
ALTER TABLE networks ADD COLUMN dhcp_options TEXT CHECK (json_type(dhcp_options) = 'array');
ALTER TABLE networks ADD COLUMN pxe TEXT CHECK (json_type(pxe) = 'object');
ALTER TABLE networks ADD COLUMN dns_records TEXT CHECK (json_type(dns_records) = 'array');
ALTER TABLE networks ADD COLUMN dns_forwarders TEXT CHECK (json_type(dns_forwarders) = 'array');
ALTER TABLE vms ADD COLUMN boot_device TEXT CHECK (boot_device IN ('network'));

-- The file of an archive that the request of an image names.
ALTER TABLE images ADD COLUMN disk TEXT;
