//! All of setu's commands act on one configuration, say which, and say when it is not that of the setu that runs.

use setu_tests::private::on_a_private_machine;

/// A configuration whose one port, and admin endpoint, are not those of the defaults.
const FILE: &str = r#"
cat >/etc/setu/setu.toml <<'END'
[relay]
path = "userspace"
[[listener]]
name = "all"
bind = ["127.0.0.1:4431"]
mode = "auto"
chat = "chat"
media = "media"
[upstream.chat]
endpoints = ["127.0.0.1:1"]
[upstream.media]
endpoints = ["127.0.0.1:1"]
[security]
allow_private_upstreams = true
[admin]
bind = ["127.0.0.1:8201"]
[tls]
names = ["proxy.example.org"]
END
"#;

fn on_a_machine_with_it(script: &str) {
    on_a_private_machine(&format!("{FILE}{script}"));
}

#[test]
fn the_file_in_etc_is_that_of_every_command() {
    on_a_machine_with_it(
        r#"
        origin="setu: the configuration is /etc/setu/setu.toml"
        serve
        head -n 3 /etc/log | grep -q "the configuration is /etc/setu/setu.toml"
        for command in check doctor share "cert show" "status --once" reload; do
            said "$origin" "$SETU" $command
        done
        said "bind = [\"127.0.0.1:4431\"]" "$SETU" check
        said "which runs with this configuration" "$SETU" check
        said "&chatPort=4431&mediaPort=4431" "$SETU" share
        said "setu 0" "$SETU" status --once
        # What scripts read is free of it.
        "$SETU" status --json 2>/dev/null | grep -q '^{'
        "$SETU" share 2>/dev/null | head -n 1 | grep -q '^https:'
        # Who names a file, or needs none, is not told.
        unsaid "the configuration is" "$SETU" share --config /etc/setu/setu.toml
        unsaid "the configuration is" "$SETU" status --once --admin 127.0.0.1:8201
        # An empty file is the defaults.
        said "&chatPort=443&mediaPort=587" "$SETU" share --config /dev/null --host a.example
        "#,
    );
}

#[test]
fn without_that_file_the_defaults_hold_and_a_reload_takes_it_up_once_it_is_there() {
    on_a_machine_with_it(
        r#"
        mv /etc/setu/setu.toml /etc/file
        said "the configuration is the defaults, for there is no /etc/setu/setu.toml" "$SETU" check
        said "0.0.0.0:5222" "$SETU" check
        serve --path userspace
        grep -q "the configuration is the defaults" /etc/log
        sed s/8201/8199/ /etc/file >/etc/setu/setu.toml
        said "reloaded, the configuration is" "$SETU" reload --path userspace
        said "4431" cat /etc/log
        # A setu that runs with the file does not take its loss for a wish for the defaults.
        rm /etc/setu/setu.toml
        said "not reloaded" "$SETU" reload --path userspace
        said "/etc/setu/setu.toml: cannot be read" cat /etc/log
        "#,
    );
}

#[test]
fn a_file_there_that_cannot_be_read_is_an_error() {
    on_a_machine_with_it(
        r#"
        chmod 600 /etc/setu/setu.toml
        install -m 755 "$SETU" /var/lib/binary
        nobody="setpriv --reuid=65534 --regid=65534 --clear-groups /var/lib/binary"
        for command in run check share status; do
            said "setu: /etc/setu/setu.toml: cannot be read: Permission denied" $nobody $command
            ended 64
            said "let this user read it" echo "$output"
        done
        rm /etc/setu/setu.toml
        ln -s /nowhere /etc/setu/setu.toml
        said "setu: /etc/setu/setu.toml: cannot be read: No such file" "$SETU" check
        ended 64
        said "setu init" echo "$output"
        "#,
    );
}

#[test]
fn another_configuration_than_that_of_the_setu_that_runs_is_told() {
    on_a_machine_with_it(
        r#"
        serve
        other="serves with another configuration"
        for command in share check doctor "status --once" "status --json"; do
            unsaid "$other" "$SETU" $command
        done
        sed -i s/4431/4432/ /etc/setu/setu.toml
        for command in share check doctor "status --once" "status --json"; do
            said "setu (pid $pid, \`$SETU run\`) $other" "$SETU" $command
            said "systemctl reload setu" echo "$output"
        done
        # The link is there all the same.
        "$SETU" share 2>/dev/null | grep -q chatPort=4432
        said "reloaded, the configuration is" "$SETU" reload
        unsaid "$other" "$SETU" share
        # The same file, by another name.
        cd /etc/setu
        unsaid "$other" "$SETU" share --config setu.toml
        said "$other" "$SETU" share --path sockmap
        "#,
    );
}

#[test]
fn options_of_the_start_that_are_not_given_are_told() {
    on_a_machine_with_it(
        r#"
        serve --port-offset 1000
        said "setu (pid $pid, \`$SETU run --port-offset 1000\`) does not answer at 127.0.0.1:8201" "$SETU" share
        said "give the options that it was started with" echo "$output"
        unsaid "setu (pid" "$SETU" share --port-offset 1000
        said chatPort=5431 echo "$output"
        said "setu 0" "$SETU" status --once --port-offset 1000
        unsaid "serves with another" echo "$output"
        "#,
    );
}
