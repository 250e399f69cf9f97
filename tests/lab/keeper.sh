#!/bin/sh
# Keeps one host of the lab: boots it, boots it again when it reboots, and ends what is left of it when it ends.
#   keeper.sh CGROUP IMAGE DIRECTORY LINK NSPAWN ARGUMENT…
# It runs in a mount namespace of its own (unshare -m), so that its mounts are gone with it, however it ends.
set -eu
cgroup=$1 image=$2 directory=$3 link=$4
shift 4

# Guests need a plain cgroup2 tree; a machine that runs systemd has one.
if [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ]; then
  umount -R /sys/fs/cgroup
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
cgroup=/sys/fs/cgroup$cgroup
guest=$cgroup/guest
mkdir -p "$cgroup/keeper"
echo $$ >"$cgroup/keeper/cgroup.procs"
sed 's/[a-z_]\+/+&/g' "$cgroup/cgroup.controllers" >"$cgroup/cgroup.subtree_control"

# Volatile: what the host writes is not forced to the disk. It needs no more than to outlive the host, not this machine;
# and the mark by which overlayfs would refuse it after this machine's crash is then not wanted.
rm -rf "$directory/work/work/incompat/volatile"
mount -t overlay -o "volatile,lowerdir=$image,upperdir=$directory/upper,workdir=$directory/work" overlay "$directory/root"
# What nspawn notes about its machines, and leaves when it is killed.
mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn

status=133 # a guest that wants to boot again
while [ "$status" = 133 ]; do
  if [ -e "/sys/class/net/$link" ]; then
    ip link delete "$link"
  fi
  mkdir -p "$guest"
  status=0
  sh -c 'echo $$ >"$0/cgroup.procs"; exec "$@"' "$guest" "$@" || status=$?
  # An nspawn that was killed leaves its guest running.
  echo 1 >"$guest/cgroup.kill"
  until grep -q 'populated 0' "$guest/cgroup.events"; do sleep 0.02; done
  find "$guest" -depth -type d -exec rmdir {} +
done
exit "$status"
