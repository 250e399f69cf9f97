# Stops every unit of the run $1 on this host, and says which ended and which did not.
# Asking needs no privilege; stopping does: root, or sudo without a password.
running() {
  systemctl list-units --plain --no-legend --full --state=activating,active,reloading,deactivating "bazaruto-$1-*.service"
}
[ -d /run/systemd/system ] || exit 0
found=$(running "$1") || exit 1
found=$(echo "$found" | cut -d" " -f1)
[ -n "$found" ] || exit 0
as_root=
[ "$(id -u)" = 0 ] || as_root="sudo -n"
$as_root systemctl thaw $found 2>/dev/null # a frozen unit cannot be stopped; one that is not frozen may refuse this
$as_root systemctl stop $found
left=$(running "$1") || exit 1
left=$(echo "$left" | cut -d" " -f1)
for unit in $found; do
  case " $(echo $left) " in *" $unit "*) echo "left $unit" ;; *) echo "stopped $unit" ;; esac
done
[ -z "$left" ] || exit 1
