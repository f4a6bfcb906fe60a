# The proof on a fresh Debian; run as root by `cargo xtask fresh`, which sets the variables:
# DIR (made and removed here), WORK (words.sh, source.git, debian.sources), LOG, RELEASE, MIRROR,
# RUSTUP and CARGO (the host's rustup and cargo homes).
set -euo pipefail
exec </dev/null > >(trap '' INT TERM HUP; tee "$LOG") 2>&1

# What a run could leave behind on the host: the fresh machine shares its kernel and network.
traces() {
    ls /sys/class/net
    find /sys/fs/cgroup -maxdepth 2 -name 'pico*' 2>/dev/null || true
    ip rule
}
before=$(traces)

# All processes of the proof. Not a pid namespace of theirs: eBPF numbers processes as the first one does, and a machine
# has no other.
group=$(findmnt -n -o TARGET -t cgroup2 | head -n 1)/fresh-$$

finish() {
    local code=$?
    trap '' INT TERM HUP
    if [ -d "$group" ]; then
        echo 1 >"$group/cgroup.kill"
        while grep -q 'populated 1' "$group/cgroup.events"; do sleep 0.1; done
        rmdir "$group"
    fi
    # All mounts were made in namespaces that have ended. Were one here all the same, removing
    # would reach through it into the host's toolchain.
    if grep -qF " $DIR/" /proc/self/mountinfo; then
        echo "not removed, since something is mounted below it: $DIR"
    else
        echo "fresh: removing $DIR"
        rm -rf --one-file-system "$DIR"
    fi
    diff <(echo "$before") <(traces) || echo "devices, cgroups or rules have changed on the host (< before, > after)"
    if [ "$code" = 0 ]; then echo "fresh: it works ($SECONDS s; log: $LOG)"; else echo "fresh: FAILED ($code; log: $LOG)"; fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

echo "fresh: a $RELEASE with git and curl in $DIR"
mkdir -m 755 "$DIR"
unshare --mount debootstrap --variant=minbase --include=git,curl,ca-certificates "$RELEASE" "$DIR" "$MIRROR" \
    | grep -v -e '^I: Retrieving' -e '^I: Validating' -e '^I: Unpacking' -e '^I: Configuring' -e '^I: Extracting'

# What an installed machine has: the release's sources, a name server, localhost, the host's trust.
rm -f "$DIR/etc/apt/sources.list"
cp "$WORK/debian.sources" "$DIR/etc/apt/sources.list.d/"
# How this host reaches the mirror (a proxy; a snapshot whose lists are out of date).
apt-config dump | grep -Ei '^Acquire::(Check-Valid-Until|Check-Date|https?::proxy)' >"$DIR/etc/apt/apt.conf.d/80host" || true
cp -L /etc/resolv.conf "$DIR/etc/resolv.conf"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$DIR/etc/hosts"
mkdir -p "$DIR/usr/local/share/ca-certificates"
find /usr/local/share/ca-certificates -name '*.crt' -exec cp {} "$DIR/usr/local/share/ca-certificates/" \; 2>/dev/null || true
chroot "$DIR" update-ca-certificates >/dev/null
mkdir -p "$DIR/root/.rustup" "$DIR/root/.cargo/bin"
if [ -f "$CARGO/config.toml" ]; then cp "$CARGO/config.toml" "$DIR/root/.cargo/"; fi
cp -r "$WORK/source.git" "$DIR/srv/picocenter.git"
cp "$WORK/words.sh" "$DIR/root/words.sh"

export DIR RUSTUP CARGO
# Its own mounts, which are gone with its last process.
mkdir "$group"
(echo "$BASHPID" >"$group/cgroup.procs" && exec unshare --mount bash -euo pipefail -c '
    # The root of a machine is a mount point: pivot_root and mount propagation ask for one.
    mount --bind "$DIR" "$DIR"
    mount -t proc proc "$DIR/proc"
    mount --rbind /sys "$DIR/sys"
    mount --rbind /dev "$DIR/dev"
    mount -t tmpfs tmpfs "$DIR/run"
    mount --bind -o ro "$RUSTUP" "$DIR/root/.rustup"
    mount --bind -o ro "$CARGO/bin" "$DIR/root/.cargo/bin"
    # Not chroot: CRIU refuses tasks whose root is not that of their mount namespace.
    cd "$DIR"
    mkdir -p .host
    pivot_root . .host
    umount -l /.host
    rmdir /.host
    exec /usr/bin/env -i HOME=/root USER=root LANG=C.UTF-8 TERM=dumb \
        PATH=/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
        bash /root/words.sh
')
