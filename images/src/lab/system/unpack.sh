#!/usr/bin/busybox sh
# usage: unpack BYTES
# Unpacks the cpio archive of BYTES bytes (a multiple of 1 MiB) at the start
# of the transfer disk into the store. The disk's contents change under the
# kernel's feet, so it is read past the page cache.
set -eu
store=/var/lib/insula-lab/store
mkdir -p "$store"
cd "$store"
dd if=/dev/vdb bs=1M count="$(($1 / 1048576))" iflag=direct,fullblock status=none |
    busybox cpio -i -d -u -m 2>/dev/null
