# Debian packages that the lab needs, and their installation. Source it (`. test/lab/packages.sh`) and call
# `install_packages`, or run it: `sh test/lab/packages.sh`. Quiet and quick when everything is there.

LAB_PACKAGES='nbd-server nbd-client libnbd-bin nbdkit qemu-utils qemu-system-x86
libvirt-daemon libvirt-daemon-driver-qemu ovmf libvirt-daemon-system libvirt-clients
openssh-server openssh-client qemu-guest-agent busybox-static linux-image-cloud-amd64
kmod xz-utils cpio iproute2 util-linux e2fsprogs xfsprogs fuse3 git ca-certificates systemd perl-base'

# Prints the packages that dpkg does not have installed.
missing_packages() {
  for package in $LAB_PACKAGES; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || status=
    [ "$status" = installed ] || printf '%s ' "$package"
  done
}

# Installs what is missing. No service is started: a policy-rc.d that forbids it stands in for the time of the
# installation, and one that was there before is put back.
install_packages() {
  # shellcheck disable=SC2086 # words wanted
  if [ "$(dpkg-query -W -f '${db:Status-Status}\n' $LAB_PACKAGES 2>/dev/null | grep -cx installed)" = \
       "$(echo $LAB_PACKAGES | wc -w)" ]; then return 0; fi
  missing=$(missing_packages)
  if [ "$(id -u)" != 0 ]; then
    echo "packages are missing; as root run: apt-get update && apt-get install --no-install-recommends $missing" >&2
    return 2
  fi
  echo "installing packages: $missing" >&2
  policy=/usr/sbin/policy-rc.d
  kept=
  if [ -e "$policy" ]; then kept=$(mktemp "$policy.XXXXXX") && mv "$policy" "$kept"; fi
  printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
  log=$(mktemp)
  # shellcheck disable=SC2086
  if apt-get update >"$log" 2>&1 &&
     DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >>"$log" 2>&1
  then installed=0; else installed=1; tail -n 20 "$log" >&2; echo 'installing packages failed' >&2; fi
  rm -f "$log" "$policy"
  if [ -n "$kept" ]; then mv "$kept" "$policy"; fi
  return $installed
}

case ${0##*/} in packages.sh) install_packages ;; esac
