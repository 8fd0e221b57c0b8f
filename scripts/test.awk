# Reads the output of `go test -v`. Prints a line for a package that passed and all
# that a failed one said, and at the end once more why each test failed, without the
# logs of daemons; writes "N passed, N failed" to the file named by counts and
# exits with 1 if a test failed. Subtests count as tests, skipped tests as failed.

/^ *--- PASS: / { passed++; next }
/^=== RUN / && $3 !~ /\// { said = "" }
/^=== (RUN|PAUSE|CONT) / { next }
/^ *--- FAIL: / { failed++; here++; why = why said "\n" $0; said = ""; more = 0 }
/^ +[a-z0-9_]+\.go:[0-9]+: / { more = /: vmand said:$/ ? 0 : 10 }
more-- > 0 { said = said "\n" substr($0, 1, 300) }
/^ *--- SKIP: / { failed++; here++; skipped = skipped "\nskipped: " $0 }

/^ok  \t/ { print $1 "\t" $2 "\t" $3; forget(); next }
/^FAIL\t/ {
	for (i = 1; i <= n; i++) print line[i]
	print
	if (!here) failed++ # did not build, panicked or ran out of time
	bad = 1
	forget()
	next
}
/^(\?   )?\t.*(no test files|coverage: )/ { next } # a package without tests
{ line[++n] = $0 }

function forget() { n = 0; here = 0 }

END {
	for (i = 1; i <= n; i++) print line[i]
	if (why != "") print "\nfailed:" why
	if (skipped != "") print substr(skipped, 2)
	printf "%d passed, %d failed\n", passed, failed > counts
	exit bad || failed
}
