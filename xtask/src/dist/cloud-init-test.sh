#!/bin/sh
# dist/cloud-init.yaml on a Debian with systemd, without any network: a package with a wrong checksum is not installed, and
# the machine says so; one with the right one serves. Called as: cloud-init-test.sh PACKAGE USER-DATA, inside of what
# machine.sh made.
set -eu
package=$1
user_data=$2
fail() {
    echo "cloud-init: $1" >&2
    cat /root/runcmd.log >&2 || true
    exit 1
}

cloud-init schema --config-file "$user_data" >/dev/null || fail "the schema does not know it"
# The files that it writes, and the script that its commands become, by cloud-init's own functions.
python3 - "$user_data" <<'END'
import logging, sys, yaml
from cloudinit import util
from cloudinit.config import cc_write_files
data = yaml.safe_load(open(sys.argv[1]))
cc_write_files.write_files("write_files", data["write_files"], "root")
util.write_file("/root/runcmd", util.shellify(data["runcmd"]), 0o700)
END
address=https://downloads.example.org/setu_amd64.deb
wrong=0000000000000000000000000000000000000000000000000000000000000000
for placeholder in "$address" "$wrong"; do
    grep -q "$placeholder" /root/runcmd || fail "there is no $placeholder to put something else in"
done
sed -i "s|$address|file://$package|" /root/runcmd

! /root/runcmd >/root/runcmd.log 2>&1 || fail "it succeeds with a wrong checksum"
test ! -e /usr/bin/setu || fail "a wrong checksum installs the package"
! dpkg-query --show setu >/dev/null 2>&1 || fail "a wrong checksum reaches dpkg"
grep -q 'setu was not set up' /etc/motd || fail "nobody is told of it at login"

sed -i "s|$wrong|$(sha256sum "$package" | cut -d ' ' -f 1)|" /root/runcmd
/root/runcmd >/root/runcmd.log 2>&1 || fail "it fails with the right checksum"
systemctl is-active --quiet setu.service || fail "setu does not serve"
systemctl is-enabled --quiet setu.service || fail "setu does not serve after a boot"
grep -q '^names = \["proxy.example.org"\]' /etc/setu/setu.toml || fail "the installation changed the configuration"
ls -d /tmp/tmp.* >/dev/null 2>&1 && fail "the download is left"
exit 0
