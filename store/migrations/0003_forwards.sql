-- How many consecutive host ports a forward has, from host_port on. An index cannot express
-- that two ranges overlap: the store checks that before it writes a row.
ALTER TABLE vm_host_ports ADD COLUMN ports INTEGER NOT NULL DEFAULT 1 CHECK (ports BETWEEN 1 AND 1000);
