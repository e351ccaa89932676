#!/bin/sh
# The whole product on one machine, in a lab of two hosts: a running, writing VM is pulled over the network into a
# verified clone, and every claim is checked with tools that are not ours. Run it: npm run demo
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
  echo 'the demo needs root: it makes two hosts out of namespaces, and a virtual machine. Run: sudo npm run demo' >&2
  exit 2
fi
. test/lab/packages.sh
install_packages
sh test/dependencies
npm run -s build

lab() { sh test/lab/lab.sh "$@"; }
source_() { lab source "$@"; }
standby() { lab standby "$@"; }
say() { printf '\n\033[1m== %s\033[0m\n' "$1"; }
fail() {
  echo "demo: $1" >&2
  exit 1
}

if lab status >/dev/null 2>&1; then
  echo 'demo: a lab is up already; end it first: npm run lab -- down' >&2
  exit 30
fi

work=$(mktemp -d)
finish() {
  status=$?
  trap - EXIT INT TERM
  lab down >"$work/down" 2>&1 || { cat "$work/down" >&2; status=1; }
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

say 'Two hosts'
lab up --owner $$
source_ sh -c 'mkdir -p /etc/nbd-clone; cat > /etc/nbd-clone/source.yaml' <<'YAML'
domains: { mydomain: {} }
YAML
standby sh -c 'mkdir -p /etc/nbd-clone; cat > /etc/nbd-clone/standby.yaml' <<'YAML'
sources: { alpha: { transport: ssh, host: source, ssh: { identity: /etc/nbd-clone/id_ed25519 } } }
domains: { mydomain: { source: alpha, rpo: 4h } }
YAML

say 'A key on the standby, which may do nothing on the source but pull this domain'
standby ssh-keygen -q -t ed25519 -N '' -C standby1 -f /etc/nbd-clone/id_ed25519
standby cat /etc/nbd-clone/id_ed25519.pub >"$work/standby1.pub"
source_ sh -c 'cat >/root/standby1.pub' <"$work/standby1.pub"
echo 'source# clone-server authorize standby1.pub --client standby1 --domains mydomain --install'
source_ clone-server authorize /root/standby1.pub --client standby1 --domains mydomain --install

say 'A guest that writes numbered records to two disks all the time'
source_ clone-server serve --json >"$work/ready" 2>"$work/serve.log" &
tries=0
until [ -s "$work/ready" ]; do
  tries=$((tries + 1))
  [ "$tries" -lt 100 ] || { cat "$work/serve.log" >&2; fail 'clone-server serve did not start'; }
  sleep 0.1
done
echo 'source# virsh domblklist mydomain'
source_ virsh domblklist mydomain </dev/null

record() { lab guest tail -n 1 /data/b/records 2>/dev/null | tr -d ' ' | grep . || echo 0; }
until [ "$(record)" -ge 50 ]; do sleep 1; done
echo "the guest has written record $(record)"

say 'One recovery point, held so that the frozen bases can be compared afterwards'
echo 'source# clone-server session open mydomain'
source_ clone-server session open mydomain
before=$(record)

say 'The standby pulls it, while the guest goes on writing'
echo 'standby# clone pull mydomain'
standby clone pull mydomain
after=$(record)
echo "the guest wrote records $before to $after meanwhile"
[ "$after" -gt "$before" ] || fail 'the guest did not write during the pull'

say 'The frozen base on the source and the clone on the standby, by sha256sum'
images=/var/lib/libvirt/images
clone=/var/lib/nbd-clone/clones/mydomain/current
for disk in vda.raw vdb.qcow2; do
  there=$(source_ sha256sum "$images/mydomain-$disk" | cut -d ' ' -f 1)
  here=$(standby sha256sum "$clone/$disk" | cut -d ' ' -f 1)
  printf '%-9s  source  %s\n           standby %s\n' "$disk" "$there" "$here"
  [ "$there" = "$here" ] || fail "$disk differs"
done

say 'The manifest, checked with coreutils alone'
for disk in vda.raw vdb.qcow2; do
  standby sh -c "cd $clone && split -b 1M --filter='sha256sum | cut -c1-64' $disk | cmp - ${disk%.*}.manifest"
  echo "$disk matches ${disk%.*}.manifest"
done

say 'The source lets go: merged, on its bases, no overlay left'
echo 'source# clone-server session close mydomain'
source_ clone-server session close mydomain
source_ virsh domblklist mydomain </dev/null
source_ ls -lh "$images"
if source_ ls "$images" | grep -q nbd-clone; then fail 'an overlay is left'; fi
if source_ virsh domblklist mydomain | grep -q nbd-clone; then fail 'the domain is on an overlay'; fi

say 'The file systems and the qcow2 in the clone are clean'
echo "standby# e2fsck -fn vda.raw; qemu-img check vdb.qcow2; e2fsck -fn on vdb's contents"
standby e2fsck -fn "$clone/vda.raw" 2>&1
standby qemu-img check "$clone/vdb.qcow2"
standby qemu-img convert -f qcow2 -O raw "$clone/vdb.qcow2" /tmp/vdb.raw
standby e2fsck -fn /tmp/vdb.raw 2>&1

say "The guest's records in the clone are a gapless prefix, and both disks are of one instant"
standby debugfs -R 'cat /records' "$clone/vda.raw" 2>"$work/debugfs" | tr -d ' ' >"$work/vda"
standby debugfs -R 'cat /records' /tmp/vdb.raw 2>"$work/debugfs" | tr -d ' ' >"$work/vdb"
for disk in vda vdb; do
  last=$(tail -n 1 "$work/$disk")
  seq 1 "$last" | cmp -s - "$work/$disk" || fail "$disk: the records have a gap"
  echo "$disk: records 1 to $last, none missing"
done
behind=$(($(tail -n 1 "$work/vda") - $(tail -n 1 "$work/vdb")))
[ "$behind" = 0 ] || [ "$behind" = 1 ] || fail 'the disks are not of one instant'

say 'What the standby has'
echo 'standby# clone status'
standby clone status
echo 'standby# clone verify mydomain'
standby clone verify mydomain

say 'All of it held. Taking the lab down'
