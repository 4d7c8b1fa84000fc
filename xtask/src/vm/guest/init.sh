#!/bin/busybox sh
# PID 1 of a guest, in two stages: in the initramfs it finds the disk, on the disk it runs /run.sh
# and writes what came of it, as a tar archive, to the second disk.

fail() {
    echo "vm: $*"
    exec /bin/busybox poweroff -f
}

first_stage() {
    /bin/busybox mount -t proc proc /proc
    /bin/busybox mount -t sysfs sys /sys
    /bin/busybox mount -t devtmpfs dev /dev
    # In the order of their numbers.
    for module in /modules/*; do
        /bin/busybox insmod "$module" || echo "vm: $module is not loaded"
    done
    tries=0
    until [ -b /dev/vda ] && [ -b /dev/vdb ]; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || fail "no disk: is virtio_blk in this kernel?"
        /bin/busybox sleep 0.1
    done
    /bin/busybox mount -t ext4 /dev/vda /disk || fail "cannot mount the disk"
    /bin/busybox cp /run.sh /init /disk/
    for place in proc sys dev; do
        /bin/busybox mount --move /$place /disk/$place
    done
    exec /bin/busybox switch_root /disk /opt/busybox/busybox sh /init second
}

second_stage() {
    busybox=/opt/busybox/busybox
    $busybox --install -s /opt/busybox
    export PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin:/opt/busybox HOME=/root
    mkdir -p /dev/pts /dev/shm
    mount -t devpts devpts /dev/pts
    mount -t tmpfs shm /dev/shm
    mount -t tmpfs run /run
    mount -t securityfs securityfs /sys/kernel/security
    mount -t tracefs tracefs /sys/kernel/tracing
    mount -t debugfs debugfs /sys/kernel/debug
    mount -t bpf bpf /sys/fs/bpf
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    ln -s /proc/self/fd /dev/fd
    hostname guest
    ip link set lo up
    stty -F /dev/ttyS1 raw
    read -r up _ </proc/uptime
    echo "vm: up after $up s: $(uname -r), lsm $(cat /sys/kernel/security/lsm)"

    # Programs that look whether they write to a terminal shall see none.
    mkfifo /run/output
    cat /run/output >/dev/ttyS1 &
    reader=$!
    sh /run.sh </dev/null >/run/output 2>&1
    echo $? >/results/exit-status
    # Something that the command left behind may hold the pipe open.
    tries=0
    while kill -0 $reader 2>/dev/null && [ $tries -lt 25 ]; do
        tries=$((tries + 1))
        sleep 0.2
    done
    tar -C /results -cf /dev/vdb . || echo "vm: the results do not fit on their disk"
    sync
    read -r up _ </proc/uptime
    echo "vm: down after $up s"
    poweroff -f
}

if [ "$1" = second ]; then
    second_stage
else
    first_stage
fi
