-- The size of a disk made of an image need not be a whole number of MiB: how many bytes
-- it is smaller than the recorded MiB.
ALTER TABLE images ADD COLUMN virtual_short INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vms ADD COLUMN root_size_short INTEGER NOT NULL DEFAULT 0;
ALTER TABLE disks ADD COLUMN size_short INTEGER NOT NULL DEFAULT 0;
