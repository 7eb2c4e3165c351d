"""What `raylaunch service` runs on a host, as root: a script with one action per call."""

from __future__ import annotations

import shlex

HOST_SCRIPT = r"""
set -eu
root=$1 action=$2 id=$3; shift 3
new=$root/etc/raylaunch/.new-$id old=$root/etc/raylaunch/.old-$id
units=$root/etc/systemd/system
mark='^# *Deployment .+, recipe .+: '
refuse() { printf '%s\n' "$1" >&2; exit 3; }
is_foreign() {
  case $1 in /etc/raylaunch/*) return 1 ;; esac
  [ -e "$root$1" ] && ! head -c 1000 "$root$1" | grep -qE "$mark"
}
case $action in
ask)  # DOCKER PATH...: whether the files can be installed
  [ -d "$root/run/systemd/system" ] || refuse 'systemd does not run there'
  command -v systemctl >/dev/null || refuse 'it has no systemctl'
  command -v tar >/dev/null || refuse 'it has no tar'
  [ -z "$1" ] || command -v "$1" >/dev/null || refuse "it has no $1"
  shift
  for path; do
    if is_foreign "$path"; then refuse "$path is there, and raylaunch did not write it"; fi
  done
  mkdir -p "$root/etc/raylaunch" && [ -w "$root/etc/raylaunch" ] && [ -w "$units" ] ||
    refuse 'its /etc cannot be written'
  ;;
stage)  # a tar file (gzip) on stdin
  mkdir -m 700 "$new"
  tar -x -z -p --no-same-owner -C "$new"
  ;;
commit)  # PATH... -- UNIT...: what was there is kept until `finish`
  touch "$new/.commit"
  while [ "$1" != -- ]; do
    mkdir -p "$old${1%/*}" "$root${1%/*}"
    if [ -e "$root$1" ]; then mv -T "$root$1" "$old$1"; fi
    mv -T "$new$1" "$root$1"
    shift
  done
  shift
  systemctl daemon-reload
  systemctl enable --quiet "$@"
  ;;
undo)  # PATH... -- UNIT...
  if [ -e "$new/.commit" ]; then
    paths=()
    while [ "$1" != -- ]; do paths+=("$1"); shift; done
    shift
    for unit; do
      if [ -e "$units/$unit" ] && [ ! -e "$new/etc/systemd/system/$unit" ] &&
        [ ! -e "$old/etc/systemd/system/$unit" ]; then systemctl disable --quiet "$unit" || true; fi
    done
    for path in "${paths[@]}"; do
      if [ ! -e "$new$path" ]; then rm -rf "$root$path"; fi
      if [ -e "$old$path" ]; then mv -T "$old$path" "$root$path"; fi
    done
    systemctl daemon-reload || true
  fi
  rm -rf "$new" "$old"
  ;;
token)  # USER PATH: stdin is the token of the cluster, for Ray of that user
  home=$root$(getent passwd "$1" | cut -d: -f6)
  [ "$home" != "$root" ] || refuse "it has no user $1"
  file=$home/$2
  for folder in "$home/.raylaunch" "$home/.raylaunch/cluster" "${file%/*}"; do
    [ -d "$folder" ] || install -d -m 700 -o "$1" "$folder"
  done
  umask 077
  cat > "$file.$id"
  chown "$1" "$file.$id"
  mv -T "$file.$id" "$file"
  ;;
finish)  # UNIT...: begin; Ray that runs goes on, what follows the deployment is started again
  rm -rf "$new" "$old"
  for unit; do
    case $unit in
    raylaunch-cluster-*) systemctl start --no-block "$unit" ;;
    *) systemctl restart --no-block "$unit" ;;
    esac
  done
  ;;
status)  # UNIT...
  properties=Id,LoadState,UnitFileState,ActiveState,SubState,StatusText,NRestarts
  systemctl show --property=$properties "$@"
  ;;
users)  # CLUSTER_UNIT OWN_UNIT: other deployments of the cluster
  for file in "$units"/raylaunch-deployment-*.service; do
    if [ "$file" != "$units/$2" ] && grep -qF "$1" "$file" 2>/dev/null; then echo "${file##*/}"; fi
  done
  ;;
remove)  # DOCKER LABEL PATH... -- UNIT...
  docker=$1 label=$2; shift 2
  paths=()
  while [ "$1" != -- ]; do
    if is_foreign "$1"; then refuse "$1 was not written by raylaunch"; fi
    paths+=("$1"); shift
  done
  shift
  for unit; do
    if [ -e "$units/$unit" ]; then systemctl disable --now --quiet "$unit"; fi
  done
  for path in ${paths[@]+"${paths[@]}"}; do rm -rf "$root$path"; done
  if [ -n "$docker" ]; then
    "$docker" ps -aq --filter "label=$label" | xargs -r "$docker" rm -f >/dev/null
  fi
  systemctl daemon-reload
  ;;
esac
"""
"""Paths are absolute on the host; `root` is in front of them, and empty outside of tests.

A failed call leaves what it began to `undo`, which restores what `commit` has moved away.
"""


def as_root(root: str, action: str, identity: str, arguments: tuple[str, ...]) -> str:
    """Return a command line for a login shell of any kind: the script as root, or by sudo."""
    words = ["bash", "-c", HOST_SCRIPT, "raylaunch", root, action, identity, *arguments]
    # `sudo -n` fails where a password would be asked for.
    rights = 'run=; [ "$(id -u)" = 0 ] || run="sudo -n"; exec $run '
    return f"exec bash -c {shlex.quote(rights + shlex.join(words))}"
