# test.awk reads the output of `go test -v`. It prints the whole output of packages that
# failed. At the end it prints the reason of each failure again, without the logs of
# daemons, writes "N passed, N failed" to the file in the variable counts, and exits with 1
# if a test failed. Subtests count as tests, and skipped tests as failed ones.

/^ *--- PASS: / { passed++; next }
/^=== RUN / && $3 !~ /\// { said = "" }
/^=== (RUN|PAUSE|CONT) / { next }
/^ *--- FAIL: / { failed++; here++; why = why said "\n" $0; said = ""; more = 0 }
/^ +[a-z0-9_]+\.go:[0-9]+: / { more = /: the log of vmand:$/ ? 0 : 10 }
more-- > 0 { said = said "\n" substr($0, 1, 300) }
/^ *--- SKIP: / { failed++; here++; skipped = skipped "\nskipped: " $0 }

/^ok  \t/ { forget(); next }
/^FAIL\t/ {
	for (i = 1; i <= n; i++) print line[i]
	print
	if (!here) failed++ # a build error, a panic or a timeout
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
