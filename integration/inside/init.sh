#!/bin/sh
# Process 1 of a guest: what systemd would do, as far as open-iscsi, udev and dockerd need it (about two seconds).
# Commands that fail are collected and shown to the host with READY: a guest that is half set up is not used.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C PYTHONPATH=/run/harness PYTHONDONTWRITEBYTECODE=1
complaints=/run/complaints
exec 2>>$complaints

mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
mkdir -p /run/lock/iscsi /run/docker/plugins /mnt

for word in $(cat /proc/cmdline); do
    case $word in harness.name=*) name=${word#*=} ;; harness.initiator=*) initiator=${word#*=} ;; esac
done
hostname "$name"
echo "127.0.0.1 localhost $name" >/etc/hosts

# No default route: a guest reaches its host (10.0.2.2) and nothing else.
ip link set lo up
ip address add 10.0.2.15/24 dev eth0 && ip link set eth0 up
if [ -e /sys/class/net/eth1 ]; then ip address add 10.0.3.15/24 dev eth1 && ip link set eth1 up; fi
# QEMU's user network stalls for 5 s whenever the guest closes its TCP window: give it one that a session can't fill.
sysctl -q -w net.core.rmem_max=16777216

/lib/systemd/systemd-udevd --daemon 2>/dev/console
modprobe -a sd_mod iscsi_tcp
udevadm trigger --subsystem-match=block --subsystem-match=misc

echo "InitiatorName=$initiator" >/etc/iscsi/initiatorname.iscsi
# Debian's file with a few later lines, which win: no systemd here, the window above, and pings that notice a dead
# target in seconds instead of in ten.
cat >>/etc/iscsi/iscsid.conf <<EOF
iscsid.startup = /usr/sbin/iscsid
node.conn[0].tcp.window_size = 4194304
node.conn[0].timeo.noop_out_interval = 3
node.conn[0].timeo.noop_out_timeout = 3
node.session.timeo.replacement_timeout = 120
EOF
iscsid

exec 2>/dev/console
python3 -m integration.inside.agent $complaints &
wait $! # dash collects the orphans of process 1 while it waits
# Only when the host is gone, or the agent has failed: its last words are on the console.
busybox poweroff -f
