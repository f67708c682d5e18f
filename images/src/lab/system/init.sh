#!/bin/busybox sh
# First program of the lab's host: finds its root disk and hands over.
# Everything that a run of the lab needs is already in memory or on that disk.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /newroot
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

fail() {
    echo "insula-lab: failed: $*" >/dev/console
    sync
    poweroff -f
    while :; do sleep 60; done
}

# In the order of their dependencies.
while read -r module; do
    insmod "/modules/$module" || fail "module $module did not load"
done </modules/order

tries=0
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do
    tries=$((tries + 1))
    [ "$tries" -gt 100 ] && fail "no root disk or no transfer disk after 10 s"
    sleep 0.1
done
mount -t ext4 -o rw,noatime,prjquota /dev/vda /newroot || fail "root disk did not mount"

mkdir -p /newroot/etc /newroot/usr/local/lib/insula-lab
cp /lab/insula-lab.json /newroot/etc/insula-lab.json &&
    cp /lab/insula-token /newroot/etc/insula-token &&
    chmod 600 /newroot/etc/insula-token &&
    cp /lab/insula-agent /lab/setup /lab/unpack /newroot/usr/local/lib/insula-lab/ &&
    chmod 755 /newroot/usr/local/lib/insula-lab/* &&
    cp /lab/inittab /newroot/etc/inittab || fail "root disk is full or read-only"

umount /proc /sys
mount --move /dev /newroot/dev
exec switch_root -c /dev/console /newroot /usr/bin/busybox init
