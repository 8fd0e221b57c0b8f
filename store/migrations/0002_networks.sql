-- Addresses are text as usual, lists of them JSON. What a network does not have
-- is NULL.
CREATE TABLE networks (
	seq         INTEGER PRIMARY KEY AUTOINCREMENT,
	name        TEXT    NOT NULL UNIQUE,
	mode        TEXT    NOT NULL CHECK (mode IN ('nat', 'isolated', 'bridge', 'user')),
	bridge      TEXT,
	subnet      TEXT,
	gateway     TEXT,
	ipv6        TEXT,
	dns         TEXT    CHECK (json_type(dns) = 'array'),
	ntp         TEXT    CHECK (json_type(ntp) = 'array'),
	routes      TEXT    CHECK (json_type(routes) = 'array'),
	domain      TEXT,
	mtu         INTEGER NOT NULL,
	vlan        INTEGER NOT NULL,
	isolate_vms INTEGER NOT NULL CHECK (isolate_vms IN (0, 1)),
	restricted  INTEGER NOT NULL CHECK (restricted IN (0, 1)),
	created_at  INTEGER NOT NULL,
	updated_at  INTEGER NOT NULL,
	revision    INTEGER NOT NULL
) STRICT;

-- Nothing was ever written to local_ip: an address is now a NIC's. nics, forwards
-- and facts (what was seen of the guest) are packed text, NULL for none: every
-- list of VMs reads them, and packed they cost a fraction of JSON or of a join.
ALTER TABLE vms DROP COLUMN local_ip;
ALTER TABLE vms ADD COLUMN nics TEXT;
ALTER TABLE vms ADD COLUMN forwards TEXT;
ALTER TABLE vms ADD COLUMN facts TEXT;

-- addresses and host_ports say nothing that vms.nics and vms.forwards do not say.
-- They are written with them, to find what is taken and who has it. ip is an
-- IPv4 address as a number. ip and ipv6 are NULL on networks whose guests do not
-- get one each of their own.
CREATE TABLE addresses (
	vm_id   TEXT    NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
	slot    INTEGER NOT NULL,
	network TEXT    NOT NULL REFERENCES networks (name) ON DELETE RESTRICT,
	mac     TEXT    NOT NULL,
	ip      INTEGER CHECK (ip BETWEEN 0 AND 4294967295),
	ipv6    TEXT,
	PRIMARY KEY (vm_id, slot)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX addresses_mac ON addresses (network, mac);
CREATE UNIQUE INDEX addresses_ip ON addresses (network, ip) WHERE ip IS NOT NULL;
CREATE UNIQUE INDEX addresses_ipv6 ON addresses (network, ipv6) WHERE ipv6 IS NOT NULL;

-- That 0.0.0.0 is every address of the host, no index can say: it is looked at
-- before a row is written.
CREATE TABLE host_ports (
	vm_id        TEXT    NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
	id           TEXT    NOT NULL,
	protocol     TEXT    NOT NULL CHECK (protocol IN ('tcp', 'udp')),
	host_address TEXT    NOT NULL,
	host_port    INTEGER NOT NULL CHECK (host_port BETWEEN 1 AND 65535),
	PRIMARY KEY (vm_id, id)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX host_ports_port ON host_ports (protocol, host_port, host_address);
