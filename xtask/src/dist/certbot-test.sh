#!/bin/sh
# dist/certbot's hook on a Debian with systemd: setu, which is no root, serves with what certbot has, and with what it
# renews. Called as: certbot-test.sh PACKAGE, inside of what machine.sh made.
set -eu
package=$1
name=proxy.example.org
letsencrypt=/etc/letsencrypt
hook=/usr/libexec/setu/setu-certbot-hook
fail() {
    echo "certbot: $1" >&2
    journalctl --no-pager --lines=20 --unit setu.service >&2 || true
    exit 1
}
# Has certbot, which root alone may look at, hold a certificate, as the given version.
renew() {
    printf '[tls]\nnames = ["%s"]\nstate_dir = "/root/made"\n' "$name" >/root/made.toml
    setu cert new --config /root/made.toml >/dev/null
    mkdir -p "$letsencrypt/live/$name" "$letsencrypt/archive/$name"
    chmod 700 "$letsencrypt/live" "$letsencrypt/archive"
    for part in privkey fullchain; do
        (umask 077 && cp /root/made/certificate.pem "$letsencrypt/archive/$name/$part$1.pem")
        ln -sf "../../archive/$name/$part$1.pem" "$letsencrypt/live/$name/$part.pem"
    done
}
served() {
    python3 -c 'import ssl; print(ssl.get_server_certificate(("127.0.0.1", 443)))' 2>/dev/null | sed -n 2,4p
}
# Whether clients are shown what certbot has now.
serves_it() {
    test "$(served)" = "$(sed -n '/BEGIN CERTIFICATE/,$p' "$letsencrypt/live/$name/fullchain.pem" | sed -n 2,4p)"
}
wait_until_it_serves_it() {
    for _ in $(seq 600); do
        ! serves_it || return 0
        sleep 0.1
    done
    fail "not within a minute: $1"
}
certbot() {
    RENEWED_LINEAGE=$letsencrypt/live/$name "$hook"
}

dpkg --install "$package" >/dev/null
! "$hook" 2>/dev/null || fail "the hook does not miss RENEWED_LINEAGE"
renew 1
certbot || fail "the hook fails"
test "$(stat --format '%U:%G %a' /etc/setu/tls)" = "root:setu 750" || fail "others may look into the folder"
for part in privkey fullchain; do
    file=/etc/setu/tls/$part.pem
    test "$(stat --format '%U:%G %a' "$file")" = "root:setu 640" || fail "others may read $file, or setu may not"
done
cat >/etc/setu/setu.toml <<'END'
[tls]
certificate = "/etc/setu/tls/fullchain.pem"
key = "/etc/setu/tls/privkey.pem"
END
systemctl start setu.service || fail "setu does not start with it"
wait_until_it_serves_it "the certificate"
renew 2
! serves_it || fail "the renewed certificate is that of before"
certbot || fail "the hook fails at a renewal"
wait_until_it_serves_it "the renewed certificate"
# What it cannot read changes nothing.
before=$(sha256sum /etc/setu/tls/*)
renew 3
rm "$letsencrypt/live/$name/fullchain.pem"
! certbot 2>/dev/null || fail "the hook does not miss a file"
test "$(sha256sum /etc/setu/tls/*)" = "$before" || fail "a failed renewal changes files"
test "$(find /etc/setu/tls -mindepth 1 | wc -l)" = 2 || fail "the hook leaves something behind"
