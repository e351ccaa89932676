#!/bin/sh
# `npm run -s lab -- VERB`: makes sure that packages, node_modules and the build exist, then runs the lab's
# command line. Running a command in a host needs none of that, so it goes straight in.

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

if [ "$(id -u)" != 0 ]; then
  echo 'lab: the lab makes namespaces, mounts and loop devices, so it must run as root' >&2
  exit 2
fi

case ${1-} in source | standby) exec sh "$here/enter.sh" "$@" ;; esac

if [ "${1-}" = up ] || [ ! -e "$root/dist/test/lab/cli.js" ]; then
  . "$here/packages.sh"
  install_packages || exit 2
  cd "$root" || exit 1
  sh test/dependencies || { echo 'lab: installing the npm packages failed' >&2; exit 1; }
  # `npm run build` would also want both programs; the lab can do without them (it warns).
  node_modules/.bin/tsc --build >&2 || { echo 'lab: the build failed' >&2; exit 1; }
fi
exec node "$root/dist/test/lab/cli.js" "$@"
