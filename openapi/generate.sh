#!/bin/sh
# Generates Go code from vman.yaml: generate.sh CONFIG OUTPUT, run in this
# directory by go generate. The generator gets the document without what it
# would make worse code of (see the package comment), and the package comment it
# writes is taken out, as the package has one.
set -eu
client=
case $2 in client/*) client='/x-go-type: (Time|RawJSON)$/d' ;; esac
sed -E \
	-e '/#\/components\/(headers|parameters)\/(RequestId|ServerVersion|DryRun|IdempotencyKey|Replayed)/d' \
	-e '/^ +- null$/d' \
	-e '/^security:$/,/^$/d' \
	-e '/^ +security: \[\]$/d' \
	-e 's/, null\]$/]/' \
	-e "$client" vman.yaml |
	go tool -modfile=../tools/go.mod oapi-codegen -config "$1" -o "$2" /dev/stdin
sed -i -e '1,2d' -e '3G' "$2"
