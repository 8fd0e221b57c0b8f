-- seq is the order of creation and the key that lists are paged by; AUTOINCREMENT
-- never gives one out twice, so a page never skips or repeats a row.
-- Times are unix milliseconds, 0 for "never". Sizes say their unit.

CREATE TABLE templates (
	seq        INTEGER PRIMARY KEY AUTOINCREMENT,
	name       TEXT    NOT NULL UNIQUE,
	cpu_count  INTEGER NOT NULL CHECK (cpu_count > 0),
	ram_mib    INTEGER NOT NULL CHECK (ram_mib > 0),
	created_at INTEGER NOT NULL
) STRICT;

-- cpu_count and ram_mib are copies of the template's, which never change: a VM
-- is read without a join.
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
	local_ip         TEXT,
	root_size_mib    INTEGER NOT NULL,
	root_base        TEXT,
	root_base_format TEXT,
	machine          TEXT,
	accel            TEXT    CHECK (accel IN ('kvm', 'tcg')),
	created_at       INTEGER NOT NULL,
	updated_at       INTEGER NOT NULL,
	started_at       INTEGER NOT NULL,
	revision         INTEGER NOT NULL
) STRICT;

CREATE INDEX vms_state ON vms (state, seq);
CREATE INDEX vms_template ON vms (template_name, seq);

-- slot is the LUN that mount_point stands for, NULL unless the disk is on a VM.
CREATE TABLE disks (
	seq         INTEGER PRIMARY KEY AUTOINCREMENT,
	id          TEXT    NOT NULL UNIQUE,
	size_mib    INTEGER NOT NULL CHECK (size_mib > 0),
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

-- problem and log are JSON.
CREATE TABLE operations (
	seq          INTEGER PRIMARY KEY AUTOINCREMENT,
	id           TEXT    NOT NULL UNIQUE,
	kind         TEXT    NOT NULL,
	resource     TEXT    NOT NULL,
	state        TEXT    NOT NULL CHECK (state IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')),
	step         TEXT    NOT NULL,
	progress     INTEGER CHECK (progress BETWEEN 0 AND 100),
	problem      TEXT    CHECK (json_valid(problem)),
	requested_by TEXT    NOT NULL,
	request_id   TEXT    NOT NULL,
	created_at   INTEGER NOT NULL,
	started_at   INTEGER NOT NULL,
	finished_at  INTEGER NOT NULL,
	log          TEXT    NOT NULL CHECK (json_valid(log))
) STRICT;

CREATE INDEX operations_resource ON operations (resource, seq);
CREATE INDEX operations_state ON operations (state, seq);
CREATE INDEX operations_open ON operations (seq) WHERE state NOT IN ('succeeded', 'failed', 'cancelled');
CREATE INDEX operations_finished ON operations (finished_at) WHERE finished_at > 0;

CREATE TABLE tokens (
	name       TEXT    NOT NULL PRIMARY KEY,
	role       TEXT    NOT NULL,
	hash       BLOB    NOT NULL CHECK (length(hash) = 32),
	created_at INTEGER NOT NULL
) STRICT;
