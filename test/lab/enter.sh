#!/bin/sh
# enter.sh HOST CMD...: becomes CMD in a host of the lab: the caller's process group and stdio, CMD's exit status,
# a login's environment. When the caller is killed, CMD gets SIGTERM (nsenter itself passes no signals on).

host=${1-}
if [ $# -lt 2 ]; then
  echo "lab: usage: $host CMD..." >&2
  exit 2
fi
shift
suffix=${NBD_CLONE_LAB_NAME:+-$NBD_CLONE_LAB_NAME}
read -r init 2>/dev/null </run/nbd-clone-lab"$suffix"/"$host"/init || init=
# The namespace must match too: a process id alone may have been used again.
if ! [ "/proc/${init:-none}/ns/net" -ef "/run/netns/nbd-clone-$host$suffix" ]; then
  echo "lab: host $host is not running; try: npm run -s lab -- status" >&2
  exit 2
fi
# npm and tap put themselves into NODE_OPTIONS, PATH and npm_*, which no command on a host should see.
node=$(command -v node)
exec nsenter --target "$init" --mount --uts --net --pid -- \
  setpriv --pdeathsig TERM -- \
  env -i --chdir=/root HOME=/root USER=root LOGNAME=root SHELL=/bin/sh LANG=C.UTF-8 TERM="${TERM:-dumb}" \
  NBD_CLONE_LAB="$host$suffix" \
  PATH="/var/tmp/nbd-clone-lab-cache/prefix/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:${node%/*}" \
  "$@"
