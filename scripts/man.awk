# man.awk — makes the manual page of the text of `vmand --help` (man(7)). The variables are
# version and date.
function text(s) {
	gsub(/\\/, "\\e", s)
	gsub(/-/, "\\-", s)
	if (s ~ /^[.']/) s = "\\\\&" s
	return s
}
function section(name) {
	if (verbatim) print ".fi"
	verbatim = 0
	print ".SH " name
}
# The text of --help is set as it is, in lines of at most 101 characters.
BEGIN {
	print ".TH VMAND 8 \"" date "\" \"vmand " text(version) "\" \"System Administration\""
	print ".SH NAME\nvmand, vman \\- virtual machine manager with a REST API"
	print ".SH SYNOPSIS\n.B vmand\n[\\fIflags\\fR]\n.br\n.B vmand\n\\fIcommand\\fR [\\fIargument\\fR] [\\fIflags\\fR]"
	section("DESCRIPTION")
}
/^Usage:$/ { section("COMMANDS"); print ".nf"; verbatim = 1; next }
/^$/ { print verbatim ? "" : ".PP"; next }
/^Settings|^Each setting is/ { section("SETTINGS"); print ".nf"; verbatim = 1 }
{ print text($0) }
END {
	section("FILES")
	print ".TP\n.I /etc/vman/config.yaml\nThe settings."
	print ".TP\n.I /var/lib/vman\nThe database, disks, images and logs."
	print ".TP\n.I /run/vman/vmand.sock\nThe unix socket of the API."
	section("EXIT STATUS")
	print ".TP\n.B 65\nThe database was written by a newer vmand."
	print ".TP\n.B 78\nThe configuration is invalid."
	section("SIGNALS")
	print ".TP\n.B SIGHUP\nRereads the tokens and log.level; the log names changed settings that need a restart."
	print ".TP\n.BR SIGTERM \", \" SIGINT\nEnds vmand. VMs keep running."
	section("SEE ALSO")
	print ".BR qemu\\-system\\-x86_64 (1),\n.BR systemctl (1)"
}
