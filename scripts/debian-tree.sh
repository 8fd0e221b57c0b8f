# debian-tree.sh — the tree of Debian packages that the guests of tests are made of. Scripts
# source it. It needs root and mmdebstrap.

# debian_tree TREE CACHE PACKAGES [OPTION...] makes TREE of the packages. It keeps an archive of
# the tree, which takes minutes to make, in CACHE, under a name that depends on its contents. The
# options are mmdebstrap's.
debian_tree() {
	local tree=$1 cache=$2 base
	shift 2
	base=$cache/base-$({ declare -f debian_archive; echo "$@"; } | sha256sum | cut -c1-16).tar
	if [ ! -e "$base" ]; then
		rm -f "$cache"/base-*
		debian_archive "$cache/base-new.tar" "$@"
		mv "$cache/base-new.tar" "$base"
	fi
	mkdir "$tree"
	tar -C "$tree" --numeric-owner --xattrs --xattrs-include='*' -xpf "$base"
}

# debian_archive FILE PACKAGES [OPTION...] makes the archive. The packages' initrd is left out:
# a guest makes its own, once, with its final list of modules.
debian_archive() {
	local file=$1 packages=$2
	shift 2
	INITRD=No mmdebstrap --quiet --mode=root --variant=apt --format=tar --skip=check/signed-by \
		--include="$(echo $packages | tr ' ' ',')" "$@" \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/i18n/*' \
		bookworm "$file"
}
