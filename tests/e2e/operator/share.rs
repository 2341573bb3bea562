//! `setu share` and `/share`: how a phone is set, also where what phones reach is not what the configuration says.

use std::{
    fs,
    os::unix::fs::symlink,
    process::{Command, Output},
};

use setu_tests::{
    Setu,
    admin::{ask, get},
    machine::is_root,
};

/// What only a load balancer can use.
const BEHIND: &str = "[[listener]]\nname = \"chat\"\nbind = [\"0.0.0.0:8443\"]\nmode = \"chat-tls\"\n\
    upstream = \"chat\"\naccept_proxy_protocol = true\n";
/// Each language, with the way it is written.
const LANGUAGES: [(&str, &str); 16] = [
    ("en", "ltr"),
    ("fa", "rtl"),
    ("ar", "rtl"),
    ("ur", "rtl"),
    ("ps", "rtl"),
    ("ru", "ltr"),
    ("tr", "ltr"),
    ("bn", "ltr"),
    ("hi", "ltr"),
    ("my", "ltr"),
    ("zh", "ltr"),
    ("id", "ltr"),
    ("am", "ltr"),
    ("es", "ltr"),
    ("fr", "ltr"),
    ("pt", "ltr"),
];

/// Runs `setu share` with a configuration.
fn share(config: &str, more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("setu.toml");
    fs::write(&file, config).unwrap();
    Command::new(Setu::binary()).args(["share", "--config"]).arg(&file).args(more).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_load_balancers_ports_are_linked_to() {
    let host = ["--host", "192.168.7.7"];
    let none = share(BEHIND, &host);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("--chat-port"), "{}", text(&none.stderr));
    let half = share(BEHIND, &["--host", "192.168.7.7", "--chat-port", "443"]);
    assert!(text(&half.stderr).contains("--media-port"), "{}", text(&half.stderr));
    let ports = ["--chat-port", "443", "--media-port", "587"];
    let whole = share(BEHIND, &[&host[..], &ports, &["--json"]].concat());
    let json = text(&whole.stdout);
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    let url = "\"url\": \"https://wa.me/proxy?host=192.168.7.7&chatPort=443&mediaPort=587&chatTLS=true\"";
    for part in
        [url, "\"host\": \"192.168.7.7\"", "\"chat_port\": 443", "\"chat_tls\": true", "\"files\": []"]
    {
        assert!(json.contains(part), "{part} in {json}");
    }
    let plain = share(BEHIND, &[&host[..], &ports, &["--chat-tls", "false"]].concat());
    assert!(text(&plain.stdout).contains("chatTLS=false\n"), "{}", text(&plain.stdout));
}

#[test]
fn hosts_that_phones_hardly_reach_are_warned_of_and_linked_to() {
    for (host, reason) in [
        ("127.0.0.1", "loopback"),
        ("10.0.0.1", "private"),
        ("setu", "without a dot"),
        ("setu.local", "mDNS"),
    ] {
        let output = share("", &["--host", host]);
        let (said, told) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && said.contains(&format!("host={host}&")), "{host}: {said}{told}");
        assert!(told.starts_with("setu: warning: ") && told.contains(reason), "{host}: {told}");
    }
    let public = share("", &["--host", "proxy.setu-bridge.net"]);
    assert!(public.status.success() && public.stderr.is_empty(), "{}", text(&public.stderr));
    for wrong in
        [&["--format", "png"][..], &["--chat-port", "0"], &["--chat-tls", "maybe"], &["--format", "gif"]]
    {
        let output = share("", &[&["--host", "setu.example"], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", text(&output.stderr));
    }
}

#[test]
fn files_are_written_in_each_format_and_links_are_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (out, victim) = (folder.path().join("out"), folder.path().join("victim"));
    fs::create_dir(&out).unwrap();
    fs::write(&victim, "precious").unwrap();
    for name in ["proxy.png", "card-fa.html"] {
        symlink(&victim, out.join(name)).unwrap();
    }
    if is_root() {
        // The folder is somebody else's, and who runs setu is root.
        let status = Command::new("chown").args(["-Rh", "65534:65534"]).arg(&out).status().unwrap();
        assert!(status.success());
    }
    let name = out.to_str().unwrap();
    let output =
        share("", &["--host", "setu.example", "--out", name, "--format", "svg,png", "--format", "pdf"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    for (file, begin) in [("proxy.svg", "<svg "), ("proxy.png", "\u{fffd}PNG"), ("proxy.pdf", "%PDF-")] {
        let path = out.join(file);
        assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{file}");
        assert!(text(&fs::read(&path).unwrap()).starts_with(begin), "{file}");
        assert!(text(&output.stdout).contains(&format!("wrote {}", path.display())), "{file}");
    }
    for (language, _) in LANGUAGES {
        assert!(
            fs::symlink_metadata(out.join(format!("card-{language}.html"))).unwrap().is_file(),
            "{language}"
        );
    }
}

#[test]
fn the_page_asks_for_what_it_needs_and_gives_all_there_is() {
    let listener = |name: &str| {
        format!(
            "[[listener]]\nname = \"{name}\"\nbind = [\"127.0.0.1:0\"]\nmode = \"{name}\"\nupstream = \"test\"\n"
        )
    };
    let setu = Setu::start(&format!(
        "[relay]\npath = \"userspace\"\n[upstream.test]\nendpoints = [\"127.0.0.1:9\"]\n[security]\n\
         allow_private_upstreams = true\n[admin]\nbind = [\"127.0.0.1:0\"]\n{}{}",
        listener("chat"),
        listener("media")
    ));
    let admin = setu.admin();
    let form = get(admin, "/share");
    assert!(form.status == 200 && form.body.contains("<form action=\"/share\">"), "{}", form.body);
    assert!(!form.body.contains("wa.me") && !form.body.contains("role=\"alert\""), "{}", form.body);
    for part in ["default-src 'none'; style-src 'sha256-", "form-action 'self'", "frame-ancestors 'none'"] {
        assert!(form.head.contains(part), "{part} in {}", form.head);
    }
    let persian =
        ask(admin, &format!("GET /share HTTP/1.1\r\nHost: {admin}\r\nAccept-Language: de,fa;q=0.9\r\n\r\n"));
    assert!(persian.body.contains("<html lang=\"fa\" dir=\"rtl\">"), "{}", persian.body);

    // What is wrong is told beside the field, and nothing that was typed becomes markup.
    for host in ["a%22%3E%3Cscript%3E", "%3Cscript%3E", "0.0.0.0", "::1"] {
        let answer = get(admin, &format!("/share?host={host}&chat_port=443&media_port=587"));
        assert!(answer.status == 400 && answer.body.contains("id=\"host-error\" role=\"alert\""), "{host}");
        assert!(
            !answer.body.contains("<script") && !answer.body.contains("wa.me"),
            "{host}: {}",
            answer.body
        );
        let card = get(admin, &format!("/share/card?host={host}&chat_port=443&media_port=587"));
        assert!(card.status == 400 && !card.head.contains("html"), "{host}: {}", card.body);
    }
    // The ports change with each start: those of phones have to be said.
    let ports = get(admin, "/share?host=proxy.setu-bridge.net");
    assert!(ports.status == 400 && ports.body.contains("id=\"chat_port-error\""), "{}", ports.body);

    let query = "host=proxy.setu-bridge.net&chat_port=2443&media_port=2587&chat_tls=true";
    let page = get(admin, &format!("/share?{query}"));
    let link = "https://wa.me/proxy?host=proxy.setu-bridge.net&amp;chatPort=2443&amp;mediaPort=2587&amp;chatTLS=true";
    assert!(page.status == 200 && page.body.contains(link) && page.body.contains("<svg"), "{}", page.body);
    // What it leads to is there.
    let places: Vec<_> = page
        .body
        .split(" href=\"/share")
        .skip(1)
        .map(|rest| format!("/share{}", rest.split_once('"').unwrap().0.replace("&amp;", "&")))
        .collect();
    assert_eq!(places.len(), LANGUAGES.len() + 3, "{places:?}");
    for place in places {
        assert!(place.ends_with(query), "{place}");
        let answer = get(admin, &place);
        let kind = match place.split_once('?').unwrap().0 {
            "/share/card" => "text/html; charset=utf-8",
            "/share.svg" => "image/svg+xml",
            "/share.png" => "image/png",
            _ => "application/pdf",
        };
        assert!(answer.status == 200 && answer.head.contains(kind), "{place}: {}", answer.head);
        assert!(answer.body.len() > 500, "{place}");
    }
    for (language, direction) in LANGUAGES {
        let card = get(admin, &format!("/share/card?lang={language}&{query}"));
        let html = format!("<html lang=\"{language}\" dir=\"{direction}\">");
        assert!(card.body.contains(&html) && card.body.contains(link), "{language}: {}", card.body);
    }
    let warned = get(admin, "/share?host=10.0.0.1&chat_port=2443&media_port=2587");
    assert!(warned.status == 200 && warned.body.contains("is a private address"), "{}", warned.body);
    assert!(!page.body.contains("class=\"state waiting"), "no warning: {}", page.body);
}

#[test]
fn a_phone_is_set_by_the_ports_that_are_open() {
    let config = |chat: &str, media: &str| {
        format!(
            "[relay]\npath = \"userspace\"\n[tls]\nnames = [\"proxy.setu-bridge.net\"]\n[admin]\nbind = [\"127.0.0.1:0\"]\n\
             [[listener]]\nname = \"chat\"\nbind = [\"{chat}\"]\nmode = \"chat\"\nupstream = \"chat\"\n\
             [[listener]]\nname = \"media\"\nbind = [\"{media}\"]\nmode = \"media\"\nupstream = \"media\"\n"
        )
    };
    let setu = Setu::start(&config("127.0.0.1:0", "127.0.0.1:0"));
    let (chat, media) = (setu.address("chat"), setu.address("media"));
    // On the ports that it got, because a link needs ports that stay.
    drop(setu);
    let setu = Setu::start(&config(&chat.to_string(), &media.to_string()));
    let link = format!(
        "https://wa.me/proxy?host=proxy.setu-bridge.net&amp;chatPort={}&amp;mediaPort={}&amp;chatTLS=false",
        chat.port(),
        media.port()
    );
    // The first of tls.names is enough.
    for path in ["/share", "/share?host=", "/share?host=Proxy.Setu-Bridge.Net."] {
        let share = get(setu.admin(), path);
        assert!(share.status == 200 && share.body.contains(&link), "{path}: {}", share.body);
    }
}
