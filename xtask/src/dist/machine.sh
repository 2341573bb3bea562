#!/bin/sh
# Becomes a small machine of its own from a Debian in a directory, which stays as it is: own processes, network, mounts,
# what is written lies in memory, and systemd is its first process. Called as:
# unshare --pid --fork --mount --net --ipc --uts --cgroup --kill-child machine.sh DIRECTORY EMPTY-DIRECTORY
set -e
debian=$1
root=$2
mount --make-rprivate /
ip link set lo up
mount -t tmpfs tmpfs "$root"
mkdir "$root/upper" "$root/work" "$root/root"
mount -t overlay -o "lowerdir=$debian,upperdir=$root/upper,workdir=$root/work" overlay "$root/root"
cd "$root/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs run
mount -t devtmpfs devtmpfs dev
# systemd wants a hierarchy to write to. A kernel with the old ones only gets one without controllers.
if ! mount -t cgroup2 cgroup2 sys/fs/cgroup 2>/dev/null; then
    mount -t tmpfs tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
fi
container=setu exec chroot . /lib/systemd/systemd --unit=multi-user.target --log-target=null --show-status=0
