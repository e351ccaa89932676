#!/bin/busybox sh
# Process 1 of the guest: mounts both disks, starts the agent and the record writer, reaps orphans for ever.
/bin/busybox --install -s
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
hostname mydomain

while read -r module; do insmod "/modules/$module"; done </modules/order
mount -t ext4 /dev/vda /data/a || echo 'no vda'
mount -t ext4 /dev/vdb /data/b || echo 'no vdb'

mkdir -p /dev/virtio-ports
for name in /sys/class/virtio-ports/*/name; do
  port=${name%/name}
  ln -s "../${port##*/}" "/dev/virtio-ports/$(cat "$name")"
done
qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run -f /run/ga.pid -d
writer &
echo $! >/run/writer.pid
echo 'guest ready' >/dev/ttyS0

while :; do
  sleep 1000000 &
  wait
done
