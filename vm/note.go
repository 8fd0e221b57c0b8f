package vm

// RestoredNote is the name of the note with the time at which the database was
// restored from a backup. The next start settles the operations that were in progress in the
// backup and empties the note.
const RestoredNote = "restored"
