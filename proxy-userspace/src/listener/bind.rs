use crate::config::Config;
use std::net::SocketAddr;
pub struct Bound {
    pub listener: usize,
    pub address: SocketAddr,
    pub sockets: Vec<std::net::TcpListener>,
}
pub fn bind_all(config: &Config, workers: usize) -> std::io::Result<Vec<Bound>> {
    let mut all = vec![];
    for (i, l) in config.listeners.iter().enumerate() {
        for a in &l.bind {
            let mut address = *a;
            let mut sockets = vec![];
            for _ in 0..workers {
                let s =
                    socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
                s.set_reuse_address(true)?;
                s.set_reuse_port(true)?;
                s.bind(&address.into())?;
                s.listen(4096)?;
                s.set_nonblocking(true)?;
                address = s.local_addr()?.as_socket().unwrap();
                sockets.push(s.into());
            }
            all.push(Bound { listener: i, address, sockets });
        }
    }
    Ok(all)
}
