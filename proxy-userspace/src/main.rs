use proxy_userspace::config::*;
use std::time::Duration;
fn main() {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("SETU_LOG").unwrap_or_else(|_| "info".into()),
        )
        .init();
    let a: Vec<String> = std::env::args().collect();
    let path = match a[1].as_str() {
        "sockmap" => PathChoice::Sockmap,
        "userspace" => PathChoice::Userspace,
        _ => PathChoice::Auto,
    };
    let up: std::net::SocketAddr = a[3].parse().unwrap();
    let c = Config {
        path,
        listeners: vec![Listener {
            name: "chat".into(),
            bind: vec![a[2].parse().unwrap()],
            upstream: UpstreamId(0),
        }],
        upstreams: vec![Upstream {
            name: "u".into(),
            endpoints: vec![Endpoint { host: Host::Ip(up.ip()), port: up.port() }],
        }],
        timeouts: Timeouts {
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(200),
            half_close: Duration::from_secs(10),
        },
        allow_private_upstreams: true,
    };
    if let Err(e) = proxy_userspace::run(c) {
        eprintln!("{e:?}");
        std::process::exit(1)
    }
}
