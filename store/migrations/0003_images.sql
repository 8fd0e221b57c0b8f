-- What an image is to have and what is stored of it are NULL or 0 until they are
-- known. Two images may have the same content.
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
CREATE INDEX images_labelled ON images (seq) WHERE labels IS NOT NULL;

ALTER TABLE disks ADD COLUMN image TEXT;
ALTER TABLE disks ADD COLUMN base TEXT;
ALTER TABLE disks ADD COLUMN base_format TEXT;

CREATE INDEX disks_base ON disks (base) WHERE base IS NOT NULL;

-- image is the one that the root disk was made of. cdroms is packed text, NULL for
-- none, as nics is.
ALTER TABLE vms ADD COLUMN image TEXT;
ALTER TABLE vms ADD COLUMN cdroms TEXT;

-- vm_contents says nothing that vms.root_base and vms.cdroms do not say. It is
-- written with them, to find who uses the content of an image.
CREATE TABLE vm_contents (
	vm_id  TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
	sha256 TEXT NOT NULL,
	PRIMARY KEY (vm_id, sha256)
) STRICT, WITHOUT ROWID;

CREATE INDEX vm_contents_sha256 ON vm_contents (sha256);

-- spec is JSON: apart from the VM, so that a list of VMs does not read over it.
CREATE TABLE seeds (
	vm_id    TEXT    NOT NULL PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
	spec     TEXT    NOT NULL CHECK (json_type(spec) = 'object'),
	instance INTEGER NOT NULL
) STRICT;
