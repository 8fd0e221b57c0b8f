-- seq is the order of creation and the key that lists are paged by. AUTOINCREMENT
-- never reuses a number, so a page never skips or repeats a row.
-- Times are Unix milliseconds, 0 for "never". Sizes carry their unit in the name.
-- Addresses are text. A column that may be NULL is NULL when there is no value.
-- json_valid(NULL) is 0 before SQLite 3.41, so a CHECK that uses it allows NULL.

CREATE TABLE templates (
	seq        INTEGER PRIMARY KEY AUTOINCREMENT,
	name       TEXT    NOT NULL UNIQUE,
	cpu_count  INTEGER NOT NULL CHECK (cpu_count > 0),
	ram_mib    INTEGER NOT NULL CHECK (ram_mib > 0),
	created_at INTEGER NOT NULL
) STRICT;

-- dns, ntp and routes are JSON arrays.
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

-- The content columns (sha256 to bytes) are NULL or 0 until the content is known.
-- Two images may have the same content. sum_sha256, sum_sha512 and format are what
-- the request demands.
CREATE TABLE images (
	seq         INTEGER PRIMARY KEY AUTOINCREMENT,
	name        TEXT    NOT NULL UNIQUE,
	state       TEXT    NOT NULL CHECK (state IN ('importing', 'uploading', 'available', 'error')),
	reason      TEXT,
	sha256      TEXT,
	layout      TEXT,
	virtual_mib INTEGER NOT NULL,
	bytes       INTEGER NOT NULL,
	sum_sha256  TEXT,
	sum_sha512  TEXT,
	format      TEXT,
	uploaded    INTEGER NOT NULL,
	source      TEXT    NOT NULL,
	description TEXT,
	labels      TEXT    CHECK (json_type(labels) = 'object'),
	created_at  INTEGER NOT NULL,
	updated_at  INTEGER NOT NULL,
	revision    INTEGER NOT NULL
) STRICT;

CREATE INDEX images_state ON images (state, seq);
CREATE INDEX images_sha256 ON images (sha256, seq) WHERE sha256 IS NOT NULL;
CREATE INDEX images_unavailable ON images (seq) WHERE state <> 'available';

-- An index of the column labels of images; owner is images.seq. As all index
-- tables, it holds no fact of its own: the store rewrites it in the transaction
-- that writes the column.
CREATE TABLE image_labels (
	owner INTEGER NOT NULL REFERENCES images (seq) ON DELETE CASCADE,
	key   TEXT    NOT NULL,
	value TEXT    NOT NULL,
	PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX image_labels_value ON image_labels (key, value, owner);

-- cpu_count and ram_mib copy the template's, which never change, so that a VM is
-- read without a join. labels is a JSON object of strings, policy a JSON object of
-- the restart policy and autostart, boot a JSON object of times by boot mark. nics,
-- forwards, cdroms and learned are JSON arrays of objects.
CREATE TABLE vms (
	seq              INTEGER PRIMARY KEY AUTOINCREMENT,
	id               TEXT    NOT NULL UNIQUE,
	uuid             TEXT    NOT NULL UNIQUE,
	template_name    TEXT    NOT NULL REFERENCES templates (name) ON DELETE RESTRICT,
	cpu_count        INTEGER NOT NULL,
	ram_mib          INTEGER NOT NULL,
	state            TEXT    NOT NULL CHECK (state IN ('stopped', 'starting', 'running', 'paused', 'stopping', 'error')),
	reason           TEXT    NOT NULL,
	reason_detail    TEXT,
	desired          TEXT    NOT NULL CHECK (desired IN ('running', 'stopped')),
	root_size_mib    INTEGER NOT NULL,
	root_image       TEXT,
	root_base        TEXT,
	root_base_format TEXT,
	machine          TEXT,
	accel            TEXT    CHECK (accel IN ('kvm', 'tcg')),
	accel_reason     TEXT,
	created_at       INTEGER NOT NULL,
	updated_at       INTEGER NOT NULL,
	started_at       INTEGER NOT NULL,
	revision         INTEGER NOT NULL,
	description      TEXT,
	labels           TEXT    CHECK (json_type(labels) = 'object'),
	policy           TEXT    CHECK (json_type(policy) = 'object'
		AND coalesce(policy ->> '$.restart', 'never') IN ('never', 'on-failure', 'always')),
	nics             TEXT    CHECK (json_type(nics) = 'array'),
	forwards         TEXT    CHECK (json_type(forwards) = 'array'),
	cdroms           TEXT    CHECK (json_type(cdroms) = 'array'),
	boot             TEXT    CHECK (json_type(boot) = 'object'),
	learned          TEXT    CHECK (json_type(learned) = 'array')
) STRICT;

CREATE INDEX vms_state ON vms (state, seq);
CREATE INDEX vms_template ON vms (template_name, seq);
CREATE INDEX vms_active ON vms (seq) WHERE state <> 'stopped' OR policy ->> '$.restart_at' > 0
	OR instr(nics, '"state":"attaching"') > 0 OR instr(nics, '"state":"detaching"') > 0;
CREATE INDEX vms_autostart ON vms (seq) WHERE policy ->> '$.autostart' = 1 AND desired = 'running';

-- The index tables of the columns labels, nics, forwards, root_base and cdroms of
-- vms. They keep addresses, MAC addresses and host ports unique and find the VMs
-- that have a value.

CREATE TABLE vm_labels (
	owner INTEGER NOT NULL REFERENCES vms (seq) ON DELETE CASCADE,
	key   TEXT    NOT NULL,
	value TEXT    NOT NULL,
	PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX vm_labels_value ON vm_labels (key, value, owner);

-- ip is an IPv4 address as a number. ip and ipv6 are NULL on networks that do not
-- give each guest an address of its own.
CREATE TABLE vm_addresses (
	vm_id   TEXT    NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
	slot    INTEGER NOT NULL,
	network TEXT    NOT NULL REFERENCES networks (name) ON DELETE RESTRICT,
	mac     TEXT    NOT NULL,
	ip      INTEGER CHECK (ip BETWEEN 0 AND 4294967295),
	ipv6    TEXT,
	PRIMARY KEY (vm_id, slot)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX vm_addresses_mac ON vm_addresses (network, mac);
CREATE UNIQUE INDEX vm_addresses_ip ON vm_addresses (network, ip) WHERE ip IS NOT NULL;
CREATE UNIQUE INDEX vm_addresses_ipv6 ON vm_addresses (network, ipv6) WHERE ipv6 IS NOT NULL;

-- An index cannot express that 0.0.0.0 is every address of the host: the store
-- checks that before it writes a row.
CREATE TABLE vm_host_ports (
	vm_id        TEXT    NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
	id           TEXT    NOT NULL,
	protocol     TEXT    NOT NULL CHECK (protocol IN ('tcp', 'udp')),
	host_address TEXT    NOT NULL,
	host_port    INTEGER NOT NULL CHECK (host_port BETWEEN 1 AND 65535),
	PRIMARY KEY (vm_id, id)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX vm_host_ports_port ON vm_host_ports (protocol, host_port, host_address);

CREATE TABLE vm_contents (
	vm_id  TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
	sha256 TEXT NOT NULL,
	PRIMARY KEY (vm_id, sha256)
) STRICT, WITHOUT ROWID;

CREATE INDEX vm_contents_sha256 ON vm_contents (sha256);

-- spec is JSON. It is not a column of vms, so that a list of VMs does not read
-- past it.
CREATE TABLE seeds (
	vm_id    TEXT    NOT NULL PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
	spec     TEXT    NOT NULL CHECK (json_type(spec) = 'object'),
	instance INTEGER NOT NULL
) STRICT;

-- slot is the LUN that mount_point stands for, NULL unless the disk is on a VM.
CREATE TABLE disks (
	seq         INTEGER PRIMARY KEY AUTOINCREMENT,
	id          TEXT    NOT NULL UNIQUE,
	size_mib    INTEGER NOT NULL CHECK (size_mib > 0),
	image       TEXT,
	base        TEXT,
	base_format TEXT,
	mount_point TEXT,
	slot        INTEGER,
	state       TEXT    NOT NULL CHECK (state IN ('creating', 'available', 'attaching', 'attached', 'detaching', 'error')),
	reason      TEXT,
	vm_id       TEXT    REFERENCES vms (id) ON DELETE RESTRICT,
	created_at  INTEGER NOT NULL,
	updated_at  INTEGER NOT NULL,
	revision    INTEGER NOT NULL
) STRICT;

CREATE INDEX disks_state ON disks (state, seq);
CREATE INDEX disks_vm ON disks (vm_id, seq) WHERE vm_id IS NOT NULL;
CREATE UNIQUE INDEX disks_slot ON disks (vm_id, slot) WHERE slot IS NOT NULL;
CREATE INDEX disks_base ON disks (base) WHERE base IS NOT NULL;

-- target, problem and log are JSON. target is NULL for the whole resource; key is
-- NULL for an operation that may be requested any number of times.
CREATE TABLE operations (
	seq          INTEGER PRIMARY KEY AUTOINCREMENT,
	id           TEXT    NOT NULL UNIQUE,
	kind         TEXT    NOT NULL,
	resource     TEXT    NOT NULL,
	target       TEXT    CHECK (json_type(target) = 'object'),
	state        TEXT    NOT NULL CHECK (state IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')),
	step         TEXT    NOT NULL,
	progress     INTEGER CHECK (progress BETWEEN 0 AND 100),
	problem      TEXT    CHECK (problem IS NULL OR json_valid(problem)),
	requested_by TEXT    NOT NULL,
	request_id   TEXT    NOT NULL,
	created_at   INTEGER NOT NULL,
	started_at   INTEGER NOT NULL,
	finished_at  INTEGER NOT NULL,
	log          TEXT    NOT NULL CHECK (json_valid(log)),
	key          TEXT,
	fingerprint  TEXT
) STRICT;

CREATE INDEX operations_resource ON operations (resource, seq);
CREATE INDEX operations_state ON operations (state, seq);
CREATE INDEX operations_open ON operations (seq) WHERE state NOT IN ('succeeded', 'failed', 'cancelled');
CREATE INDEX operations_finished ON operations (finished_at) WHERE finished_at > 0;
CREATE UNIQUE INDEX operations_key ON operations (requested_by, key) WHERE key IS NOT NULL;

-- The replies to the requests that began operations. They are not columns of
-- operations, so that a list of operations does not read past them.
CREATE TABLE replies (
	operation INTEGER PRIMARY KEY REFERENCES operations (seq) ON DELETE CASCADE,
	status    INTEGER NOT NULL,
	location  TEXT,
	etag      TEXT,
	body      BLOB
) STRICT;

-- topic is the type up to its first dot. Events are written far more often than old
-- ones are deleted, so there is no index on the time.
CREATE TABLE events (
	seq      INTEGER PRIMARY KEY AUTOINCREMENT,
	at       INTEGER NOT NULL,
	type     TEXT    NOT NULL,
	resource TEXT    NOT NULL,
	data     TEXT    CHECK (data IS NULL OR json_valid(data)),
	topic    TEXT    AS (substr(type, 1, instr(type, '.'))) VIRTUAL
) STRICT;

CREATE INDEX events_type ON events (type, seq);
CREATE INDEX events_topic ON events (topic, seq);
CREATE INDEX events_resource ON events (resource, seq);

-- Small facts that vmand keeps about itself.
CREATE TABLE notes (
	name  TEXT NOT NULL PRIMARY KEY,
	value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
	name       TEXT    NOT NULL PRIMARY KEY,
	role       TEXT    NOT NULL,
	hash       BLOB    NOT NULL CHECK (length(hash) = 32),
	created_at INTEGER NOT NULL
) STRICT;
