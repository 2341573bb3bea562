#!/bin/sh
# The life of the package on a Debian with systemd, without any network: installed, started, changed, upgraded, removed,
# purged. Called as: package-test.sh PACKAGE, inside of what machine.sh made.
set -eu
package=$1
fail() {
    echo "package: $1" >&2
    systemctl status --no-pager --lines=30 setu.service >&2 || true
    exit 1
}
# Waits for a port of setu: a line of /proc/net/tcp in state LISTEN (0A).
listens() {
    port=$(printf '%04X' "$1")
    for _ in $(seq 100); do
        ! grep -q "^ *[0-9]*: 00000000:$port 00000000:0000 0A" /proc/net/tcp || return 0
        sleep 0.1
    done
    fail "nothing listens on port $1"
}

dpkg --install "$package" >/dev/null
setu --version
id setu >/dev/null || fail "there is no user setu"
test "$(systemctl is-enabled setu.service || true)" = disabled || fail "the installation opened a proxy unasked"
systemd-analyze verify --man=no setu.service setu.socket || fail "systemd does not like the units"
setu share --host proxy.example.org | grep -q '^https://wa.me/proxy?host=proxy.example.org&' || fail "no link"
for file in man/man1/setu.1.gz man/man1/setu-run.1.gz bash-completion/completions/setu doc/setu/copyright; do
    test -s "/usr/share/$file" || fail "/usr/share/$file is missing"
done

systemctl start setu.service || fail "it does not start"
listens 5222
pid=$(systemctl show --property MainPID --value setu.service)
test "$(stat --format %U "/proc/$pid")" = setu || fail "it does not run as setu"
test "$(stat --format '%U %a' /var/lib/setu)" = "setu 700" || fail "its state is not its own alone"
grep -q '^NoNewPrivs:.1' "/proc/$pid/status" || fail "it could gain privileges"
systemctl reload setu.service || fail "it does not reload"

echo '# changed by the operator' >>/etc/setu/setu.toml
dpkg --install "$package" >/dev/null 2>&1 || fail "the upgrade fails"
grep -q 'changed by the operator' /etc/setu/setu.toml || fail "the upgrade lost the configuration"
listens 5222
test "$(systemctl show --property MainPID --value setu.service)" != "$pid" || fail "the old one still runs"

dpkg --remove setu >/dev/null
test "$(systemctl is-active setu.service || true)" = inactive || fail "it runs on after its removal"
test -e /etc/setu/setu.toml || fail "the removal took the configuration"
dpkg --purge setu >/dev/null 2>&1
for path in /etc/setu/setu.toml /var/lib/setu /usr/bin/setu; do
    test ! -e "$path" || fail "$path is left"
done
