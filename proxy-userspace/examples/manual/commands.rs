//! What the pages on commands say beside their options, which are those of the command line itself.

use clap_mangen::roff::{Roff, bold, roman};

use crate::configuration::inlines;

/// A line of a list: what, and what of it.
type Item = (&'static str, &'static str);

/// What there is to say of a command.
struct Page {
    /// Exit codes of its own, before those of all.
    exit: &'static [Item],
    environment: &'static [Item],
    files: &'static [Item],
    signals: &'static [Item],
    examples: &'static [Item],
}

const USAGE: Item =
    ("2", "Wrong usage: an option that does not exist, lacks its value or has one that cannot be.");
const CONFIGURATION: Item =
    ("64", "The configuration, or the certificate that it names, cannot be used. The error says why.");

const LOG: Item = (
    "SETU_LOG",
    "What is written to standard error besides errors: `error`, `warn`, `info` (the default), `debug` or `trace`, or \
     directives such as `setu=debug`.",
);
const CERTIFICATES: Item =
    ("SSL_CERT_FILE, SSL_CERT_DIR", "The authorities that are trusted, in place of the system's.");

const FILE: Item =
    ("/etc/setu/setu.toml", "The configuration, unless `--config` names another. See `setu.toml`(5).");
const STATE: Item = (
    "/var/lib/setu",
    "The state directory, unless `tls.state_dir` names another: the certificate that setu makes, and the socket by which a \
     successor finds it.",
);
const EXAMPLES: Item = ("/usr/share/doc/setu/examples", "Configurations to start from.");

/// Commands that end by themselves.
const NO_SIGNALS: &[Item] = &[(
    "SIGINT, SIGTERM",
    "End this command at once, and no other. `setu-run`(1) has those of a setu that serves.",
)];

/// The page of a command, by the name of its file.
fn page(file: &str) -> Option<Page> {
    let page = match file {
        "setu.1" => Page {
            exit: &[
                ("0", "Done; of `setu run`: ended as it was told to."),
                ("1", "Anything else than 2 and 64."),
            ],
            environment: &[LOG],
            files: &[FILE, STATE, EXAMPLES],
            signals: &[("SIGHUP, SIGTERM, SIGINT", "Of a setu that serves: see `setu-run`(1).")],
            examples: &[
                ("setu init", "Write the configuration of a new server."),
                ("setu check", "See what this machine can do for it."),
                ("systemctl enable --now setu", "Serve, now and after each boot."),
                ("setu doctor", "See whether it serves phones."),
                ("setu share", "Have the link for phones."),
            ],
        },
        "setu-run.1" => Page {
            exit: &[
                ("0", "It ended after SIGTERM, SIGINT, or because a successor serves."),
                ("1", "It could not start, for instance because a port is in use, or had to give up."),
            ],
            environment: &[
                LOG,
                (
                    "NOTIFY_SOCKET, WATCHDOG_USEC",
                    "Where systemd is told that setu is ready, how it is, and that it lives.",
                ),
                ("LISTEN_FDS, LISTEN_PID", "Listening sockets that systemd passes, see `systemd.socket`(5)."),
            ],
            files: &[FILE, STATE],
            signals: &[
                (
                    "SIGHUP",
                    "Take the configuration anew, all of it or nothing, without touching connections. `setu-reload`(1) also \
                     tells whether it was taken.",
                ),
                (
                    "SIGTERM, SIGINT",
                    "Accept no more, and end once no connection is left, at the latest after `timeouts.drain`. The second \
                     one ends setu at once.",
                ),
            ],
            examples: &[
                ("setu run", "Serve with /etc/setu/setu.toml, or the defaults where there is none."),
                ("setu run --config /dev/null", "Serve with the defaults, whatever there is."),
                ("setu run --port-offset 10000", "Serve without privileges, chat at 15222 and so on."),
                ("setu run --replace", "Take over from the setu that runs, so that no client is refused."),
            ],
        },
        "setu-init.1" => Page {
            exit: &[
                ("0", "The file was written."),
                ("1", "It was not: it exists already, or may not be written there."),
            ],
            environment: &[LOG],
            files: &[
                ("/etc/setu/setu.toml", "What is written, unless `--out` names another."),
                ("/etc/setu/setu.toml.TIME", "What was there before, after `--force`."),
            ],
            signals: NO_SIGNALS,
            examples: &[
                ("setu init", "Ask three questions, and write the configuration."),
                ("setu init --host proxy.example.org", "Ask nothing: everything on port 443."),
                (
                    "setu init --host proxy.example.org --fallback 127.0.0.1:8080",
                    "And have the web server there answer whoever is no client.",
                ),
            ],
        },
        "setu-check.1" => Page {
            exit: &[
                ("0", "`setu run` would start."),
                ("1", "It would not: a line of the output begins with `no`."),
            ],
            environment: &[LOG],
            files: &[FILE, STATE],
            signals: NO_SIGNALS,
            examples: &[
                ("setu check", "The configuration as it will be, and what this machine can do for it."),
                ("setu check --config /etc/setu/next.toml", "The same for a file that is not in use yet."),
            ],
        },
        "setu-reload.1" => Page {
            exit: &[
                ("0", "The setu that runs has taken the configuration."),
                (
                    "1",
                    "It has not, and serves as before; or nobody answers, and it is not known whether it has.",
                ),
            ],
            environment: &[LOG],
            files: &[FILE],
            signals: NO_SIGNALS,
            examples: &[
                ("systemctl reload setu", "The same by the packaged unit, and as its user."),
                ("setu reload", "Have the setu take its file anew that runs with it."),
            ],
        },
        "setu-doctor.1" => Page {
            exit: &[
                ("0", "Phones are served, if only in part: then the first line says what does not work."),
                ("1", "Nothing could be examined."),
                (
                    "10 to 18",
                    "Found on the server. 10: setu does not run. 11: it is stopping. 12: names do not resolve. \
                  13: WhatsApp cannot be reached. 14: it does not answer. 15: who answers is not WhatsApp. 16: names \
                  lead to private addresses. 17: a certificate is not valid now, or the clock is wrong. 18: setu runs, \
                  but not at these ports.",
                ),
                (
                    "20 to 24",
                    "Found with --remote. 20: no network here. 21: no DNS here. 22: no such host. 23: it \
                  cannot be reached. 24: a port is closed.",
                ),
            ],
            environment: &[LOG, CERTIFICATES],
            files: &[FILE],
            signals: NO_SIGNALS,
            examples: &[
                ("setu doctor", "Try everything on the server."),
                ("setu doctor --remote proxy.example.org", "Try, on any other machine, what phones do."),
                ("setu doctor --remote 'https://wa.me/proxy?host=…'", "The same, with the ports of a link."),
                ("setu doctor --json", "The same for programs."),
            ],
        },
        "setu-status.1" => Page {
            exit: &[
                ("0", "The status was shown; with --once: clients are served, if only in part."),
                ("1", "There is none: nobody answers at the admin endpoint."),
                ("3", "With --once: clients are not served."),
                ("4", "With --once: it is starting."),
                ("5", "With --once: it is stopping."),
            ],
            environment: &[LOG],
            files: &[FILE],
            signals: NO_SIGNALS,
            examples: &[
                ("setu status", "Watch the setu that runs here."),
                ("setu status --once", "Look once."),
                ("setu status --json", "What /status.json says, for programs."),
            ],
        },
        "setu-share.1" => Page {
            exit: &[("0", "The link was printed."), ("1", "There is none: the error says why.")],
            environment: &[LOG],
            files: &[FILE],
            signals: NO_SIGNALS,
            examples: &[
                ("setu share", "The link for phones, by the first of tls.names."),
                (
                    "setu share --host proxy.example.org --out cards",
                    "And cards to print, into the directory cards.",
                ),
            ],
        },
        "setu-cert.1" | "setu-cert-show.1" | "setu-cert-new.1" => Page {
            exit: &[("0", "Done."), ("1", "The certificate that setu makes cannot be written.")],
            environment: &[LOG],
            files: &[FILE, STATE],
            signals: NO_SIGNALS,
            examples: &[
                ("setu cert show", "What clients are shown."),
                ("setu cert new", "Another one, of setu's own making."),
            ],
        },
        "setu-wire.1" | "setu-wire-show.1" | "setu-wire-clear.1" => Page {
            exit: &[
                ("0", "It is shown, or nothing is left."),
                (
                    "1",
                    "It could not be seen or taken away, or a keeper runs whose flows it is: stop that setu first.",
                ),
            ],
            environment: &[LOG],
            files: &[("/sys/fs/bpf/setu", "What is pinned of the wire, a folder for each instance.")],
            signals: NO_SIGNALS,
            examples: &[
                ("setu wire show", "Which instances have connections on the wire, and how many."),
                ("setu wire clear", "Takes away what a setu that was killed has left."),
            ],
        },
        _ => return None,
    };
    Some(page)
}

/// The end of a page, or `None` for one that nothing is known to say of.
pub(crate) fn end(file: &str) -> Option<String> {
    let Page { exit, environment, files, signals, examples } = page(file)?;
    let exit: Vec<_> = exit.iter().copied().chain([USAGE, CONFIGURATION]).collect();
    let mut roff = Roff::new();
    for (heading, items) in [
        ("EXIT STATUS", &exit[..]),
        ("ENVIRONMENT", environment),
        ("FILES", files),
        ("SIGNALS", signals),
        ("EXAMPLES", examples),
    ] {
        roff.control("SH", [heading]);
        for (what, about) in items {
            roff.control("TP", []).text([bold(*what)]).text(inlines(about));
        }
    }
    roff.control("SH", ["SEE ALSO"]).text([roman("setu(1), setu.toml(5)")]);
    // The macros that begin a rendered page are at the beginning of the whole already.
    Some(roff.to_roff())
}
