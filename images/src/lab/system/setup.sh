#!/usr/bin/busybox sh
# System start of the lab's host, before its daemon: the few things that an
# init system would have done.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/opt/busybox
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t tmpfs -o mode=755,nosuid,nodev run /run
mkdir -p /dev/pts /dev/shm /run/lock /var/lib/insula /root/.cache
mount -t devpts -o mode=620,ptmxmode=666,gid=5 devpts /dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev shm /dev/shm
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
mount -t bpf -o mode=700 bpf /sys/fs/bpf 2>/dev/null
mount -t tracefs -o mode=700 tracefs /sys/kernel/tracing 2>/dev/null
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null
done

# Files that an unprivileged build could not give to root.
[ "$(stat -c %u /usr)" = 0 ] || busybox chown -R -h 0:0 /bin /sbin /lib /lib64 /usr /etc /var /root /opt /home

hostname lab
sysctl -qw kernel.panic=-1 kernel.printk="3 4 1 3" vm.overcommit_memory=1 \
    kernel.dmesg_restrict=0 kernel.kptr_restrict=0 net.ipv4.ip_forward=1
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
# Emulated at the same time, several processors need a kernel that leaves its
# code alone (see insula-agent's role 'steady'); it says so when it does.
if ! grep -q '"cpus":1[,}]' /etc/insula-lab.json; then
    mkfifo /run/insula-steady
    setsid /usr/local/lib/insula-lab/insula-agent steady </dev/null >/run/insula-steady 2>/dev/console &
    read -r _ </run/insula-steady || echo "insula-lab: nothing keeps the kernel steady" >/dev/console
    rm /run/insula-steady
fi
[ -c /dev/kvm ] || echo "insula-lab: failed: no /dev/kvm: this QEMU does not emulate SVM" >/dev/console
