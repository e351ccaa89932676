#!/bin/sh
# Writes record n to vda and syncs it, then to vdb and syncs that, for ever: at any instant the last record of vdb
# is the last of vda or one less. Lines are 8 bytes, so that none ever lies across two blocks.

# last DISK: the number of its last record
last() {
  line=$(tail -n 1 "/data/$1/records" 2>/dev/null)
  echo $((line + 0))
}

# Without a process of its own: those are dear in emulation.
mounted() {
  while read -r _ where _; do [ "$where" != "$1" ] || return 0; done </proc/mounts
  return 1
}

# record DISK N
record() {
  mounted "/data/$1" || return 0
  printf '%7d\n' "$2" >>"/data/$1/records"
  dd if=/dev/urandom of="/data/$1/blob" bs=16k count=1 seek=$(($2 % 256)) conv=notrunc 2>/dev/null
  sync -f "/data/$1/records"
}

n=$(last a)
if [ "$n" -gt 0 ] && [ "$(last b)" -lt "$n" ]; then record b "$n"; fi
while :; do
  n=$((n + 1))
  record a "$n"
  record b "$n"
  sleep 0.2
done
