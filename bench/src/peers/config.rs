//! The configuration of each peer: one listener before one server. `FOLDER` stands for the peer's own folder.

use super::{Kind, Service, certificates::Certificate};
use crate::topology::{CLIENTS, PROXY, SERVER};

/// The name of the nftables table.
pub(super) const TABLE: &str = "setu_bench";

/// The text of a peer's configuration file.
pub(super) fn of(kind: Kind, service: Service, certificate: Option<&Certificate>) -> String {
    match kind {
        Kind::HaproxyReference => haproxy(service, certificate, "  tune.bufsize 4096\n", ""),
        Kind::HaproxyTuned => haproxy(service, certificate, "", "  option splice-auto\n"),
        Kind::Nginx => nginx(service, certificate),
        Kind::Sniproxy => sniproxy(service),
        Kind::SetuUserspace => setu("userspace", service, certificate),
        Kind::SetuAuto => setu("auto", service, certificate),
        Kind::SetuWire => setu("wire", service, certificate),
        Kind::SetuSockmap => setu("sockmap", service, certificate),
        // These have no file.
        Kind::Direct | Kind::NftDnat => String::new(),
    }
}

pub(super) fn nftables(port: u16) -> String {
    format!(
        "table ip {TABLE} {{\n  chain in {{\n    type nat hook prerouting priority dstnat;\n    \
         ip daddr {PROXY} tcp dport {port} dnat to {SERVER}\n  }}\n}}\n"
    )
}

/// Timeouts are the reference's. Its maxconn (27,495) wants more descriptors than a machine may allow; this is more
/// than any scenario opens.
fn haproxy(service: Service, certificate: Option<&Certificate>, global: &str, defaults: &str) -> String {
    let port = service.port();
    let (bind, rules) = match (service, certificate) {
        (Service::Tls, Some(certificate)) => (format!(" ssl crt {}", certificate.both.display()), ""),
        (Service::Sni, _) => (
            String::new(),
            "  tcp-request inspect-delay 5s\n  tcp-request content accept if { req.ssl_sni -m end .whatsapp.net }\n  \
             tcp-request content reject if { req.ssl_hello_type 1 }\n",
        ),
        _ => (String::new(), ""),
    };
    format!(
        "global\n{global}  maxconn 4500\ndefaults\n  mode tcp\n{defaults}  timeout connect 5s\n  \
         timeout client 200s\n  timeout server 200s\n  timeout client-fin 1s\n  timeout server-fin 1s\n\
         frontend f\n  bind {PROXY}:{port}{bind}\n{rules}  default_backend b\nbackend b\n  server s {SERVER}\n"
    )
}

/// By default nginx cuts off the answer that comes after a client has finished.
fn nginx(service: Service, certificate: Option<&Certificate>) -> String {
    let port = service.port();
    let server = match (service, certificate) {
        (Service::Tls, Some(Certificate { certificate, key, .. })) => format!(
            "listen {PROXY}:{port} ssl; ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3; \
             proxy_pass {SERVER};",
            certificate.display(),
            key.display()
        ),
        (Service::Sni, _) => format!("listen {PROXY}:{port}; ssl_preread on; proxy_pass $by_name;"),
        _ => format!("listen {PROXY}:{port}; proxy_pass {SERVER};"),
    };
    format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nworker_processes auto;\ndaemon off;\n\
         pid FOLDER/pid;\nerror_log FOLDER/log;\nevents {{ worker_connections 9500; }}\nstream {{\n  \
         map $ssl_preread_server_name $by_name {{ hostnames; *.whatsapp.net {SERVER}; }}\n  \
         server {{ {server} tcp_nodelay on; proxy_half_close on; proxy_connect_timeout 5s; proxy_timeout 200s; }}\n}}\n"
    )
}

fn sniproxy(service: Service) -> String {
    format!(
        "user root\npidfile FOLDER/pid\nerror_log {{\n  filename FOLDER/log\n  priority error\n}}\n\
         listen {PROXY}:{} {{\n  proto tls\n  table names\n}}\n\
         table names {{\n  .*\\.whatsapp\\.net$ {SERVER}\n}}\n",
        service.port()
    )
}

/// All clients come from one address, for which setu has limits of its own; its peers have none.
fn setu(path: &str, service: Service, certificate: Option<&Certificate>) -> String {
    let (mode, more) = match (service, certificate) {
        (Service::Tls, Some(Certificate { certificate, key, .. })) => (
            "chat-tls",
            format!("[tls]\ncertificate = \"{}\"\nkey = \"{}\"\n", certificate.display(), key.display()),
        ),
        (Service::Sni, _) => ("media", "[allow]\nsni = [\"*.whatsapp.net\"]\n".to_owned()),
        _ => ("chat", String::new()),
    };
    format!(
        "[relay]\npath = \"{path}\"\n[[listener]]\nname = \"bench\"\nbind = [\"{PROXY}:{}\"]\n\
         mode = \"{mode}\"\nupstream = \"bench\"\n\
         [upstream.bench]\nendpoints = [\"{SERVER}\"]\nsend_proxy_protocol = \"off\"\n\
         [security]\nallow_private_upstreams = true\n[limits]\nexempt = [\"{CLIENTS}\"]\n{more}",
        service.port()
    )
}
