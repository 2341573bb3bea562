pub fn is_public(ip: std::net::IpAddr) -> bool {
    !ip.is_loopback()
}
