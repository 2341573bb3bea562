#!/bin/sh
# The life of the package on a Debian with systemd, without any network: installed, set up as a newcomer does, started,
# changed, asked how it is, upgraded under 500 flows, removed, purged. Called as: package-test.sh PACKAGE BENCH, inside of what machine.sh made;
# BENCH is setu-bench, which plays WhatsApp's servers and the users.
set -eu
package=$1
bench=$2
authority=/root/authority.pem
fail() {
    echo "package: $1" >&2
    systemctl status --no-pager --lines=30 setu.service >&2 || true
    exit 1
}
# Waits for something, for as long as an upgrade may take.
wait_for() {
    what=$1
    shift
    for _ in $(seq 600); do
        ! "$@" 2>/dev/null || return 0
        sleep 0.1
    done
    fail "not within a minute: $what"
}
# Whether a port of setu listens: a line of /proc/net/tcp in state LISTEN (0A).
listens() {
    grep -q "^ *[0-9]*: 00000000:$(printf '%04X' "$1") 00000000:0000 0A" /proc/net/tcp
}
main_pid() {
    systemctl show --property MainPID --value setu.service
}

dpkg --install "$package" >/dev/null
setu --version
id setu >/dev/null || fail "there is no user setu"
for unit in setu.service setu.socket; do
    test "$(systemctl is-enabled $unit || true)" = disabled || fail "the installation opened a proxy unasked"
done
systemd-analyze verify --man=no setu.service setu.socket || fail "systemd does not like the units"
setu share --host proxy.example.org | grep -q '^https://wa.me/proxy?host=proxy.example.org&' || fail "no link"
for file in man/man1/setu.1.gz man/man1/setu-run.1.gz man/man5/setu.toml.5.gz bash-completion/completions/setu doc/setu/copyright; do
    test -s "/usr/share/$file" || fail "/usr/share/$file is missing"
done

echo "nameserver 127.0.0.53" >/etc/resolv.conf
"$bench" stand-in-servers 127.0.0.53:53 "$authority" >/root/servers 2>&1 &
servers=$!
trap 'kill $servers' EXIT
wait_for "the servers" test -s "$authority"

# The newcomer's walk: a configuration, the start, a look, the link.
test ! -e /etc/setu/setu.toml || fail "the package decides which ports are opened"
! systemctl start setu.service 2>/dev/null || fail "it starts without a configuration"
told() {
    systemctl status --no-pager --lines=30 setu.service | grep -q 'setu.toml: cannot be read: .*.setu init. writes one'
}
wait_for "the word that setu init is next" told
systemctl reset-failed setu.service
setu init --host proxy.example.org </dev/null >/root/init || fail "it cannot be set up"
grep -q 'systemctl enable --now setu' /root/init || fail "it does not say what is next: $(cat /root/init)"
# WhatsApp's servers are on this machine; the one for chat wants PROXY protocol, to see that it comes where it is to.
sed -i -e 's/^\[upstream.chat\]/&\nendpoints = ["g.whatsapp.net:15222"]/' \
    -e 's/^send_proxy_protocol = "off"/send_proxy_protocol = "v1"/' /etc/setu/setu.toml
cat >>/etc/setu/setu.toml <<'END'
[upstream.media]
endpoints = ["whatsapp.net:1443"]
[security]
allow_private_upstreams = true
END
setu check >/root/check || fail "it would not start: $(cat /root/check)"
systemctl enable --now --quiet setu.service || fail "it does not start as it was set up"
wait_for "port 443" listens 443
! listens 5222 || fail "more is open than was asked for"
setu check >/root/check || fail "the check finds: $(cat /root/check)"
doctor=$(SSL_CERT_FILE=$authority setu doctor) || fail "the doctor finds, of what was set up: $doctor"
link=$(setu share 2>/root/said | head -n 1)
! grep -q 'another configuration' /root/said || fail "the link is not that of what runs: $(cat /root/said)"
for port in chatPort mediaPort; do
    number=$(echo "$link" | sed -n "s/.*[?&]$port=\([0-9]*\).*/\1/p")
    # The shell's own way to connect, of bash alone, which is the one to expand this.
    # shellcheck disable=SC2016
    answer=$(timeout 30 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1" && printf "GET / HTTP/1.0\r\n\r\n" >&3 && head -n 1 <&3' \
        bash "$number" || true)
    case $answer in HTTP/1.1*) ;; *) fail "port $number of $link does not answer: $answer" ;; esac
done
echo "set up, started, checked, examined, shared: $link"
systemctl disable --now --quiet setu.service

# From here on with all ports, which are those of setu.socket.
cp /usr/share/doc/setu/examples/defaults.toml /etc/setu/setu.toml
systemctl enable --now --quiet setu.socket setu.service || fail "it does not start"
wait_for "port 5222" listens 5222
pid=$(main_pid)
test "$(stat --format %U "/proc/$pid")" = setu || fail "it does not run as setu"
test "$(stat --format '%U %a' /var/lib/setu)" = "setu 700" || fail "its state is not its own alone"
grep -q '^NoNewPrivs:.1' "/proc/$pid/status" || fail "it could gain privileges"
grep -q '^CapEff:.0000000000000000' "/proc/$pid/status" || fail "it kept capabilities"

cat >>/etc/setu/setu.toml <<'END'
# changed by the operator: WhatsApp's servers are on this machine
[upstream.chat]
endpoints = ["g.whatsapp.net:15222"]
[upstream.chat-http]
endpoints = ["g.whatsapp.net:15222"]
[upstream.media]
endpoints = ["whatsapp.net:1443"]
[security]
allow_private_upstreams = true
END
systemctl reload setu.service || fail "it does not reload"
test "$(main_pid)" = "$pid" || fail "a reload is no restart"
# What is not taken makes it fail: what is wrong in itself, and what only the running one finds out.
cp /etc/setu/setu.toml /root/setu.toml
for mistake in "nonsense = 1" '[[listener]]
name = "low"
bind = ["0.0.0.0:81"]
mode = "chat"
upstream = "chat"'; do
    echo "$mistake" >>/etc/setu/setu.toml
    ! systemctl reload setu.service 2>/dev/null || fail "it reloads: $mistake"
    cp /root/setu.toml /etc/setu/setu.toml
done
setu status --once | grep -q 'restart setu' || fail "the status does not tell of it: $(setu status --once)"
systemctl reload setu.service || fail "it does not reload any more"
test "$(main_pid)" = "$pid" || fail "a reload that fails ends it"
doctor=$(SSL_CERT_FILE=$authority setu doctor) || fail "the doctor finds: $doctor"
echo "$doctor" | head -n 1
setu status --once | grep -q working || fail "the status is not that it works: $(setu status --once)"

mkfifo /root/told
"$bench" stand-in-users "$authority" </root/told >/root/users 2>&1 &
users=$!
exec 3>/root/told
wait_for "flows: $(cat /root/users)" grep -q 'flows are open' /root/users
dpkg --install "$package" >/root/upgrade 2>&1 &
upgrade=$!
draining() {
    systemctl show --property StatusText --value setu.service | grep -q '^draining, [1-9]'
}
wait_for "the old one drains" draining
# The flows go on meanwhile, and end before timeouts.drain is over.
sleep 10
draining || fail "flows were cut: $(cat /root/users)"
echo finish >&3
wait "$upgrade" || fail "the upgrade fails: $(cat /root/upgrade)"
grep -q 'changed by the operator' /etc/setu/setu.toml || fail "the upgrade lost the configuration"
test "$(main_pid)" != "$pid" || fail "the old one still runs"
sleep 3
echo stop >&3
wait "$users" || fail "upgrade: $(cat /root/users)"
tail -n 1 /root/users

systemctl is-active --quiet setu.socket || fail "the upgrade stopped setu.socket"
dpkg --remove setu >/dev/null 2>&1
for unit in setu.service setu.socket; do
    test "$(systemctl is-active $unit || true)" = inactive || fail "$unit is active after the removal"
done
test -e /etc/setu/setu.toml || fail "the removal took the configuration"
dpkg --purge setu >/dev/null 2>&1
for path in /etc/setu /var/lib/setu /usr/bin/setu; do
    test ! -e "$path" || fail "$path is left"
done
