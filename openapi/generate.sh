#!/bin/sh
# generate.sh CONFIG OUTPUT generates Go code from vman.yaml. go generate runs it
# in this directory. The generator gets the document without the parts that the
# package comment in generate.go lists, and its own package comment is removed
# from the output, since the package has one.
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
