-- The file of an archive that the request of an image names.
ALTER TABLE images ADD COLUMN disk TEXT;
