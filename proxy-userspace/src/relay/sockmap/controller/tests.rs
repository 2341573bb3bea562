use std::net::{TcpListener, TcpStream};

use tokio::sync::mpsc::unbounded_channel;

use super::*;
use crate::{
    account::Counters,
    relay::sockmap::{Handle, Loaded},
};

/// A controller that does not run; `None` where the kernel path needs more privileges.
fn controller() -> Option<(Controller, Handle)> {
    let limits = Limits::new(1_000, 64 << 20, Duration::from_secs(60)).only_quiet();
    match Loaded::new(limits) {
        Ok(Loaded { controller, handle }) => Some((controller, handle)),
        Err(error) if !procfs::process::Process::myself().unwrap().status().unwrap().euid.eq(&0) => {
            println!("skipped, not privileged: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let leg = listener.accept().unwrap().0;
    leg.set_nonblocking(true).unwrap();
    SockRef::from(&leg).set_linger(Some(Duration::ZERO)).unwrap();
    (peer, leg)
}

fn flow() -> ([TcpStream; 2], Legs) {
    let ((phone, client), (server, upstream)) = (pair(), pair());
    ([phone, server], Legs { client: client.into(), upstream: upstream.into(), left: 0 })
}

fn ticket() -> Ticket {
    let counters = Arc::<Counters>::default();
    let listener = counters.listener("test");
    Ticket::new(counters, listener)
}

#[test]
fn a_storm_of_new_flows_does_not_hold_up_the_others() {
    let Some((mut controller, handle)) = controller() else { return };
    let (returns, _returned) = unbounded_channel();
    let mut peers = Vec::new();
    for _ in 0..COMMANDS + 1 {
        let (ends, legs) = flow();
        peers.push(ends);
        assert!(handle.adopt(legs, ticket(), returns.clone()).is_ok());
    }
    assert!(matches!(controller.take_commands(), Commands::More));
    assert_eq!(controller.flows.len(), COMMANDS);
    assert!(matches!(controller.take_commands(), Commands::Taken));
    assert_eq!(controller.flows.len(), COMMANDS + 1);
}

#[test]
fn at_its_end_flows_in_the_kernel_are_reset_and_those_that_wait_go_back() {
    let Some((mut controller, handle)) = controller() else { return };
    let (returns, mut returned) = unbounded_channel();
    let ([phone, server], legs) = flow();
    assert!(handle.adopt(legs, ticket(), returns.clone()).is_ok());
    assert!(matches!(controller.take_commands(), Commands::Taken));
    let (_waiting, legs) = flow();
    assert!(handle.adopt(legs, ticket(), returns).is_ok());
    drop(controller);
    for mut peer in [phone, server] {
        let error = std::io::Read::read(&mut peer, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    assert_eq!(returned.try_recv().unwrap().why, Why::NotTaken(Refusal::Ended));
}

#[test]
fn a_flow_comes_back_with_receive_buffers_that_grow() {
    let Some((mut controller, handle)) = controller() else { return };
    let (returns, mut returned) = unbounded_channel();
    let (_peers, legs) = flow();
    assert!(handle.adopt(legs, ticket(), returns).is_ok());
    assert!(matches!(controller.take_commands(), Commands::Taken));
    assert!(
        SIDES
            .iter()
            .all(|side| sys::testing::is_receive_buffer_locked(&controller.flow(0).unwrap().leg(*side)))
    );
    controller.leave(0, Why::Streams);
    let Legs { client, upstream, left } = returned.try_recv().unwrap().legs;
    assert!(![client, upstream].iter().any(sys::testing::is_receive_buffer_locked));
    assert_eq!(left, 1);
}
