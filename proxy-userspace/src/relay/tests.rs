use std::{pin::pin, sync::Arc, task::Poll, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc::unbounded_channel,
    time::{sleep, timeout},
};

use super::*;
use crate::{account::ListenerCounts, config::testing::TIMEOUTS};

/// Every wait ends after this.
const PATIENCE: Duration = Duration::from_secs(20);

/// The two ends of a connection.
pub(super) async fn pair() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    [peer, listener.accept().await.unwrap().0]
}

/// Accounts of connections.
struct Books {
    counters: Arc<Counters>,
    listener: Arc<ListenerCounts>,
}

impl Books {
    fn new() -> Self {
        let counters = Arc::<Counters>::default();
        let listener = counters.listener("test");
        Self { counters, listener }
    }

    fn ticket(&self) -> Ticket {
        Ticket::new(self.counters.clone(), self.listener.clone())
    }
}

async fn is_reset(peer: &mut TcpStream) -> bool {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        match timeout(PATIENCE, peer.read(&mut bytes)).await.unwrap() {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn at_once(client: TcpStream, upstream: TcpStream) -> Flow {
    let hand_over = HandOver::of_new(PathChoice::Sockmap, false);
    Flow { client, upstream, first: None, collected: Default::default(), is_new: true, hand_over }
}

#[tokio::test]
async fn a_flow_with_bytes_in_a_receive_queue_is_not_handed_over() {
    let [mut phone, client] = pair().await;
    let [mut server, upstream] = pair().await;
    let books = Books::new();
    let mut ticket = books.ticket();
    let flow = at_once(client, upstream);
    let mut relay = pin!(userspace::relay(flow, &mut ticket, &TIMEOUTS, &books.counters, None));
    phone.write_all(b"unread").await.unwrap();
    sleep(Duration::from_millis(50)).await;
    std::future::poll_fn(|cx| {
        // Reads find nothing when the task has had its share of this turn.
        while pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
        assert!(relay.as_mut().poll(cx).is_pending(), "handed over");
        Poll::Ready(())
    })
    .await;
    let mut bytes = [0; 6];
    let (ended, read) = tokio::join!(timeout(PATIENCE, relay), server.read_exact(&mut bytes));
    assert!(matches!(ended, Ok(Ended::Quiet(_))), "in a moment of quiet it is");
    assert_eq!((read.unwrap(), &bytes), (6, b"unread"));
}

#[tokio::test]
async fn without_a_controller_a_flow_goes_on_in_userspace() {
    let [mut phone, client] = pair().await;
    let [mut server, upstream] = pair().await;
    let books = Books::new();
    let (returns, _returned) = unbounded_channel();
    let kernel = Handle::of_nobody();
    let means = Means {
        choice: PathChoice::Sockmap,
        wire: None,
        kernel: Some(&kernel),
        returns: &returns,
        timeouts: &TIMEOUTS,
        counters: &books.counters,
    };
    let peers = async {
        for _ in 0..3 {
            phone.write_all(b"ping").await.unwrap();
            server.read_exact(&mut [0; 4]).await.unwrap();
            sleep(Duration::from_millis(20)).await;
        }
        phone.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        server.shutdown().await.unwrap();
        assert_eq!(phone.read(&mut [0]).await.unwrap(), 0);
    };
    let all = async { tokio::join!(relay(client, upstream, 0, books.ticket(), means), peers) };
    timeout(PATIENCE, all).await.unwrap();
    assert_eq!(books.counters.closed(CloseReason::ClientClosed), 1);
}

#[tokio::test]
async fn a_flow_that_is_cut_is_reset() {
    let [mut phone, client] = pair().await;
    let [mut server, upstream] = pair().await;
    let books = Books::new();
    let flow = Flow { hand_over: HandOver::Never, ..at_once(client, upstream) };
    let running = tokio::spawn(async move {
        userspace::relay(flow, &mut books.ticket(), &TIMEOUTS, &books.counters, None).await;
    });
    phone.write_all(b"in the middle").await.unwrap();
    server.read_exact(&mut [0; 13]).await.unwrap();
    running.abort();
    assert!(running.await.is_err());
    assert!(is_reset(&mut phone).await && is_reset(&mut server).await);
}

/// A stream has ended when its FIN has come, and at no other time.
#[tokio::test]
async fn a_flow_that_is_silent_for_too_long_is_reset() {
    for (len, finishes, expected) in [
        (0, false, CloseReason::Idle),
        (1000, false, CloseReason::Idle),
        // More than all buffers between hold.
        (64 << 20, false, CloseReason::Idle),
        (1000, true, CloseReason::HalfCloseTimeout),
    ] {
        let [mut phone, client] = pair().await;
        let [mut server, upstream] = pair().await;
        let books = Books::new();
        let half = Duration::from_millis(300);
        let timeouts = Timeouts { idle: half, half_close: half, ..TIMEOUTS };
        let flow = Flow { hand_over: HandOver::Never, ..at_once(client, upstream) };
        let relaying = async {
            let mut ticket = books.ticket();
            let ended = userspace::relay(flow, &mut ticket, &timeouts, &books.counters, None).await;
            let Ended::Closed(reason) = ended else { panic!("handed over") };
            assert_eq!(reason, expected);
        };
        let peers = async {
            if finishes {
                phone.shutdown().await.unwrap();
            }
            timeout(Duration::from_secs(3), server.write_all(&vec![1; len])).await
        };
        let (_written, ()) = tokio::join!(peers, relaying);
        assert!(is_reset(&mut phone).await, "{len} bytes");
    }
}
