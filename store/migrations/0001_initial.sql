-- seq is the order of creation and the key that lists are paged by; AUTOINCREMENT
-- never gives one out twice, so a page never skips or repeats a row.
-- Times are unix milliseconds, 0 for "never". Sizes say their unit.
-- json_valid(NULL) is 0 before SQLite 3.41, so a CHECK says that NULL is fine.

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
	revision         INTEGER NOT NULL,

	-- NULL unless there is something out of the ordinary. labels is a JSON
	-- object of strings. policy is a JSON object of what is seldom set, when to
	-- restart the VM and when to start it: a column of its own for each of its
	-- members would make a list a tenth slower to read.
	description      TEXT,
	labels           TEXT CHECK (json_type(labels) = 'object'),
	policy           TEXT CHECK (json_type(policy) = 'object' AND coalesce(policy ->> '$.restart', 'never') IN ('never', 'on-failure', 'always'))
) STRICT;

CREATE INDEX vms_state ON vms (state, seq);
CREATE INDEX vms_template ON vms (template_name, seq);
CREATE INDEX vms_labelled ON vms (seq) WHERE labels IS NOT NULL;

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

-- target, problem and log are JSON; target is NULL for the whole resource. key is NULL for an operation that may be asked for
-- any number of times.
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

-- What was answered to the requests that began operations: apart from them, so
-- that a list of operations does not read over it.
CREATE TABLE replies (
	operation INTEGER PRIMARY KEY REFERENCES operations (seq) ON DELETE CASCADE,
	status    INTEGER NOT NULL,
	location  TEXT,
	etag      TEXT,
	body      BLOB
) STRICT;

-- topic is the type up to its dot. An event is written far more often than the
-- old ones are forgotten, so there is no index on the time.
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

-- Small facts vmand keeps about itself.
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
