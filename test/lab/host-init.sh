#!/bin/sh
# Process 1 of a host of the lab: mounts what is the host's own, prints its process id as the machine sees it,
# then reaps orphans for ever. Runs in fresh mount, uts and PID namespaces: host-init.sh HOST IMAGE
set -eu
host=$1 image=$2
# Read before /proc is replaced; the shell itself must read it, a child would print its own.
read -r pid rest </proc/self/stat

# Slaves: nothing leaks out, yet what the machine unmounts is not kept busy in here.
mount --make-rslave /
mount -t proc proc /proc
# Without the machine's cgroups: two libvirts would both keep their domains in them, under the same names.
umount --recursive --lazy /sys
mount -t sysfs sysfs /sys
mount -o loop "$image" /var/lib

# Everything that must outlive a power cut is on the host's file system; what need not is in memory.
own=/var/lib/.host
for name in etc root; do
  mkdir -p $own/$name $own/work/$name
  mount -t overlay overlay -o lowerdir=/$name,upperdir=$own/$name,workdir=$own/work/$name /$name
done
for name in log cache; do
  mkdir -p $own/$name
  mount --bind $own/$name /var/$name
done
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /run/lock /run/sshd /run/nbd-clone
chmod 700 /run/nbd-clone

if [ ! -e $own/made ]; then
  # The machine's own configuration must not be seen: libvirtd would start its domains.
  rm -rf /etc/libvirt /etc/ssh /etc/nbd-clone /etc/nbd-server
  rm -rf /root/.ssh /root/.profile /root/.bashrc /root/.bash_profile
  mkdir -p /etc/libvirt /etc/ssh /etc/nbd-clone /etc/nbd-server
  mkdir -p /var/lib/libvirt/images /var/log/libvirt/qemu /var/cache/libvirt
  mkdir -m 700 /root/.ssh
  chmod 711 /var/lib/libvirt/images
  touch $own/made
fi
hostname "$host"
ip link set lo up

echo "$pid"
exec >/dev/null
while :; do
  sleep 1000000 &
  wait
done
