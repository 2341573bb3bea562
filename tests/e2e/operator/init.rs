//! `setu init` writes a configuration that serves, from a terminal's answers or from options, and loses no other.

use setu_tests::private::on_a_private_machine;

#[test]
fn options_are_enough_and_what_is_written_serves() {
    on_a_private_machine(
        r#"
        rmdir /etc/setu
        umask 077
        said "wrote /etc/setu/setu.toml" "$SETU" init --host Proxy.Example.org
        ended 0
        for next in "TCP port 443," "setu check" "systemctl enable --now setu" "setu doctor" "setu share"; do
            case $output in *"$next"*) ;; *) echo "no $next: $output" >&2; exit 1 ;; esac
        done
        test "$(stat --format %a /etc/setu/setu.toml) $(stat --format %a /etc/setu)" = "644 755"
        test "$(ls -A /etc/setu)" = setu.toml
        said "host=proxy.example.org&chatPort=443&mediaPort=443&chatTLS=true" "$SETU" share
        unsaid 'send_proxy_protocol = "v1"' grep -v '^#' /etc/setu/setu.toml
        serve
        said "reloaded, the configuration is" "$SETU" reload
        "#,
    );
}

#[test]
fn what_was_there_is_lost_by_no_slip() {
    on_a_private_machine(
        r#"
        echo '# mine' >/etc/setu/setu.toml
        said "/etc/setu/setu.toml exists; --force" "$SETU" init --host a.example
        ended 1
        said mine cat /etc/setu/setu.toml
        said "kept what was there: /etc/setu/setu.toml." "$SETU" init --host a.example --ports all --force
        ended 0
        said mine cat /etc/setu/setu.toml.*
        said "7777" "$SETU" check
        # Elsewhere, and by the other name of the option.
        said "setu run --config /etc/other.toml" "$SETU" init --host a.example --config /etc/other.toml --ports 443,587
        said "wrote" "$SETU" init --host a.example --out /etc/third.toml --fallback 127.0.0.1:8080
        said 'fallback = "127.0.0.1:8080"' "$SETU" check --config /etc/third.toml
        said "/nowhere/a/setu.toml cannot be written" "$SETU" init --host a.example --out /nowhere/a/setu.toml
        ended 1
        "#,
    );
}

#[test]
fn without_a_terminal_options_that_are_missing_are_named() {
    on_a_private_machine(
        r#"
        said "name --host" "$SETU" init </dev/null
        ended 2
        said "2001:db8::1 is an IPv6 address" "$SETU" init --host 2001:db8::1
        ended 2
        said "443,587" "$SETU" init --host a.example --ports 80
        ended 2
        said "such as 127.0.0.1:8080" "$SETU" init --host a.example --fallback 8080
        ended 2
        test -z "$(ls -A /etc/setu)"
        "#,
    );
}

#[test]
fn a_terminal_is_asked_three_questions() {
    on_a_private_machine(
        r#"
        answers() {
            printf "$1" | script --quiet --return --command "$SETU init --out /etc/setu/$2" /dev/null
        }
        said "wrote /etc/setu/a.toml" answers 'x y\nproxy.example.org\n\n\n' a.toml
        for question in "only letters" "By which name" "Which ports" "Does a web server"; do
            case $output in *"$question"*) ;; *) echo "no $question: $output" >&2; exit 1 ;; esac
        done
        said "chatPort=443&mediaPort=443" "$SETU" share --config /etc/setu/a.toml
        said "wrote /etc/setu/b.toml" answers '192.0.2.1\n443,587\n127.0.0.1:8080\n' b.toml
        said 'fallback = "127.0.0.1:8080"' "$SETU" check --config /etc/setu/b.toml
        said "0.0.0.0:587" echo "$output"
        "#,
    );
}
