use std::net::TcpListener;

use setu_tests::{
    dns::{Answer, DnsServer},
    peers::Silent,
};
use tokio::time::sleep;

use super::{super::status::Standing, *};

/// Upstream number 3, behind those of the defaults.
const TEST: UpstreamId = UpstreamId(3);

fn upstreams(endpoints: &[String], more: &str, own: Vec<SocketAddr>) -> (Arc<Upstreams>, Background) {
    let text = format!(
        "[[listener]]\nname = \"test\"\nbind = [\"127.0.0.1:0\"]\nmode = \"chat\"\nupstream = \"test\"\n\
         [upstream.test]\nendpoints = {endpoints:?}\n{more}\n[security]\nallow_private_upstreams = true\n"
    );
    Upstreams::new(&Config::parse("test", &text).unwrap(), own, None)
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn refused() -> String {
    listen().1
}

fn standings(upstreams: &Upstreams) -> Vec<Standing> {
    let status = upstreams.status().into_iter().filter(|status| status.upstream == "test");
    status.map(|status| status.standing).collect()
}

/// Runs a test beside the background.
async fn beside(background: Background, test: impl Future<Output = ()>) {
    tokio::select! {
        () = background.run(std::future::pending()) => unreachable!("it runs for ever"),
        () = test => {}
    }
}

async fn until_dialed(upstreams: &Upstreams) -> Dialed {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match upstreams.dial(TEST, None).await {
            Ok(dialed) => return dialed,
            Err(reason) => assert!(Instant::now() < deadline, "still {reason}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn dead_endpoints_fail_no_client_and_are_left_alone() {
    let (_listener, living) = listen();
    let (upstreams, _background) = upstreams(&[refused(), living.clone(), refused()], "", Vec::new());
    let mut all = Vec::new();
    for _ in 0..50 {
        let dialed = upstreams.dial(TEST, None).await.unwrap();
        assert_eq!(dialed.stream.peer_addr().unwrap().to_string(), living);
        all.push(dialed);
    }
    assert_eq!(standings(&upstreams), [Standing::Down, Standing::Up, Standing::Down]);
    let status = upstreams.status().into_iter().find(|status| status.endpoint == living).unwrap();
    assert_eq!((status.connections, status.last_error), (50, None));
    drop(all);
    assert!(upstreams.status().iter().all(|status| status.connections == 0));
}

#[tokio::test]
async fn when_all_are_down_clients_are_told_at_once_and_checks_go_on() {
    let endpoint = refused();
    let (upstreams, background) = upstreams(std::slice::from_ref(&endpoint), "", Vec::new());
    beside(background, async {
        for _ in 0..3 {
            assert_eq!(upstreams.dial(TEST, None).await.unwrap_err(), CloseReason::ConnectRefused);
        }
        assert_eq!(upstreams.dial(TEST, None).await.unwrap_err(), CloseReason::UpstreamDown);
        let listener = TcpListener::bind(&endpoint).unwrap();
        // No client helps: a check finds it.
        let accepted = tokio::task::spawn_blocking(move || listener.accept().map(|_| listener));
        let _listener = accepted.await.unwrap().unwrap();
        until_dialed(&upstreams).await;
        assert_eq!(standings(&upstreams), [Standing::Up]);
    })
    .await;
}

#[tokio::test]
async fn a_silent_endpoint_leaves_time_for_the_others() {
    let silent = Silent::new("127.0.0.1:0");
    let (_listener, living) = listen();
    let (both, _background) = upstreams(&[silent.address().to_string(), living], "", Vec::new());
    for _ in 0..2 {
        both.dial(TEST, None).await.unwrap();
    }
    let short = "[timeouts]\nconnect = \"300ms\"";
    let (alone, _background) = upstreams(&[silent.address().to_string()], short, Vec::new());
    assert_eq!(alone.dial(TEST, None).await.unwrap_err(), CloseReason::ConnectTimeout);
}

#[tokio::test]
async fn an_endpoint_that_no_source_reaches_is_down() {
    let (_listener, living) = listen();
    // No address of this machine. The kernel's error is that of having no port left, of which `out_of_ephemeral_ports`
    // among the end-to-end tests shows that no endpoint is blamed.
    let (upstreams, _background) = upstreams(&[living], "sources = [\"203.0.113.7\"]", Vec::new());
    assert_eq!(upstreams.dial(TEST, None).await.unwrap_err(), CloseReason::ConnectUnreachable);
    assert_ne!(standings(&upstreams), [Standing::Untried]);
}

#[tokio::test]
async fn setu_never_dials_itself() {
    let (listener, own) = listen();
    let address = listener.local_addr().unwrap();
    for own_address in [address, SocketAddr::new([0, 0, 0, 0].into(), address.port())] {
        let (upstreams, _background) = upstreams(std::slice::from_ref(&own), "", vec![own_address]);
        assert_eq!(upstreams.dial(TEST, None).await.unwrap_err(), CloseReason::DestinationRefused);
    }
}

#[tokio::test]
async fn names_are_dialed_and_failures_named() {
    let server = DnsServer::new();
    server.set("a.test", Answer::addresses(&["127.0.0.1"], 60));
    server.set("silent.test", Answer::Silence);
    let (listener, _) = listen();
    let port = listener.local_addr().unwrap().port();
    let more = format!("[dns]\nservers = [\"{}\"]\n[timeouts]\nconnect = \"1s\"", server.address());
    let (upstreams, background) = upstreams(&[format!("a.test:{port}")], &more, Vec::new());
    beside(background, async {
        assert!(upstreams.dial(TEST, None).await.unwrap().lease.is_some());
        let dialed = upstreams.dial_name(TEST, "A.test", port, None).await.unwrap();
        assert_eq!(dialed.stream.peer_addr().unwrap().port(), port);
        for name in ["absent.test", "silent.test"] {
            let error = upstreams.dial_name(TEST, name, port, None).await.unwrap_err();
            assert_eq!(error, CloseReason::ResolveFailed, "{name}");
        }
        let counts = upstreams.name_failures();
        assert_eq!(counts.map(|(_, count)| count), [1, 0, 0, 0], "{counts:?}");
        assert_eq!(upstreams.stale_answers(), 0);
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_moves_is_followed_before_its_name_expires() {
    let server = DnsServer::new();
    server.set("a.test", Answer::addresses(&["127.0.0.1"], 3_600));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let more = format!("[dns]\nservers = [\"{}\"]", server.address());
    let (upstreams, background) = upstreams(&[format!("a.test:{}", address.port())], &more, Vec::new());
    beside(background, async {
        upstreams.dial(TEST, None).await.unwrap();
        drop(listener);
        let _moved = TcpListener::bind(("127.0.0.2", address.port())).unwrap();
        server.set("a.test", Answer::addresses(&["127.0.0.2"], 3_600));
        let dialed = until_dialed(&upstreams).await;
        assert_eq!(dialed.stream.peer_addr().unwrap().ip().to_string(), "127.0.0.2");
    })
    .await;
}

/// A reload must not make setu forget which endpoints are dead, nor ask for names that it knows.
#[tokio::test]
async fn what_is_known_survives_another_configuration() {
    let dead = refused();
    let (_listener, living) = listen();
    let (before, _background) = upstreams(&[dead.clone(), living.clone()], "", Vec::new());
    while standings(&before) != [Standing::Down, Standing::Up] {
        before.dial(TEST, None).await.unwrap();
    }
    let held = before.dial(TEST, None).await.unwrap();
    let config = |endpoints: &[String]| {
        let text = format!(
            "[upstream.test]\nendpoints = {endpoints:?}\n[security]\nallow_private_upstreams = true\n"
        );
        Config::parse("test", &text).unwrap()
    };
    let (same, _background) = Upstreams::new(&config(&[dead, living.clone()]), Vec::new(), Some(&before));
    assert_eq!(standings(&same), [Standing::Down, Standing::Up]);
    assert_eq!(same.status().iter().map(|status| status.connections).sum::<usize>(), 1);
    drop(held);
    assert_eq!(same.status().iter().map(|status| status.connections).sum::<usize>(), 0);
    let (other, _background) = Upstreams::new(&config(&[living]), Vec::new(), Some(&same));
    assert_eq!(standings(&other), [Standing::Untried]);
    // Which addresses failed does not depend on the endpoints that have them.
    let history = |upstreams: &Upstreams| {
        let mut all = upstreams.all.iter();
        all.find(|upstream| upstream.pool.name() == "test").unwrap().history.clone()
    };
    assert!(Arc::ptr_eq(&history(&before), &history(&other)));
}
