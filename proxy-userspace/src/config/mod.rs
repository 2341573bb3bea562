use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathChoice {
    Auto,
    Sockmap,
    Userspace,
}
#[derive(Debug, Clone)]
pub struct Config {
    pub path: PathChoice,
    pub listeners: Vec<Listener>,
    pub upstreams: Vec<Upstream>,
    pub timeouts: Timeouts,
    pub allow_private_upstreams: bool,
}
#[derive(Debug, Clone)]
pub struct Listener {
    pub name: String,
    pub bind: Vec<SocketAddr>,
    pub upstream: UpstreamId,
}
#[derive(Debug, Clone, Copy)]
pub struct UpstreamId(pub usize);
#[derive(Debug, Clone)]
pub struct Upstream {
    pub name: String,
    pub endpoints: Vec<Endpoint>,
}
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub host: Host,
    pub port: u16,
}
#[derive(Debug, Clone)]
pub enum Host {
    Ip(IpAddr),
    Name(String),
}
#[derive(Debug, Clone)]
pub struct Timeouts {
    pub connect: Duration,
    pub idle: Duration,
    pub half_close: Duration,
}
impl Config {
    pub fn upstream(&self, id: UpstreamId) -> &Upstream {
        &self.upstreams[id.0]
    }
}
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.host, self.port)
    }
}
