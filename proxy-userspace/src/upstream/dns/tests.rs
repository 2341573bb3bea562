use std::future::Future;

use setu_tests::dns::{Answer as Says, DnsServer};
use tokio::time::sleep;

use super::*;

/// Runs a test beside the task that asks.
async fn with<T>(
    configured: &[&str],
    servers: &[SocketAddr],
    allow_private: bool,
    test: impl AsyncFnOnce(&Names) -> T,
) -> T {
    let (names, requests) = Names::new(configured.iter().map(|name| (*name).into()), Instant::now());
    let destinations = Destinations::new(allow_private, Vec::new());
    tokio::select! {
        () = run(&names, requests, servers, &destinations) => unreachable!("it runs for ever"),
        result = test(&names) => result,
    }
}

fn ips(addresses: &[&str]) -> Answer {
    Ok(addresses.iter().map(|ip| ip.parse().unwrap()).collect())
}

/// Ages what is known of a name by so much.
fn age(names: &Names, name: &str, by: Duration) {
    let mut table = names.lock();
    let entry = table.get_mut(name).unwrap();
    entry.learned -= by;
    entry.expires -= by;
    if let Some((_, until, _)) = &mut entry.failure {
        *until -= by;
    }
}

async fn eventually<T: PartialEq + std::fmt::Debug, F: Future<Output = T>>(wanted: T, get: impl Fn() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let now = get().await;
        if now == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{now:?}, not {wanted:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn both_families_are_found_and_remembered() {
    let server = DnsServer::new();
    server.set("both.test", Says::addresses(&["157.240.1.1", "2a03:2880::1"], 60));
    server.set("four.test", Says::addresses(&["157.240.1.4"], 60));
    with(&[], &[server.address()], false, async |names| {
        assert_eq!(names.addresses("both.test").await, ips(&["2a03:2880::1", "157.240.1.1"]));
        assert_eq!(names.addresses("four.test").await, ips(&["157.240.1.4"]));
        let queries = server.queries();
        assert_eq!(queries, 4);
        assert_eq!(names.addresses("BOTH.Test").await, ips(&["2a03:2880::1", "157.240.1.1"]));
        assert_eq!(server.queries(), queries);
    })
    .await;
}

#[tokio::test]
async fn many_addresses_of_one_family_leave_room_for_the_other() {
    let server = DnsServer::new();
    let v6: Vec<_> = (1..=ADDRESSES_MAX + 4).map(|number| format!("2a03:2880::{number:x}")).collect();
    let v4: Vec<_> = (1..=ADDRESSES_MAX + 4).map(|number| format!("157.240.1.{number}")).collect();
    let say = |name: &str, addresses: &[&[String]]| {
        let all: Vec<_> = addresses.concat();
        server.set(name, Says::addresses(&all.iter().map(String::as_str).collect::<Vec<_>>(), 60));
    };
    say("six.test", &[&v6, &v4[..1]]);
    say("four.test", &[&v4, &v6[..1]]);
    say("both.test", &[&v4, &v6]);
    with(&[], &[server.address()], false, async |names| {
        for (name, six) in
            [("six.test", ADDRESSES_MAX - 1), ("four.test", 1), ("both.test", ADDRESSES_MAX / 2)]
        {
            let addresses = names.addresses(name).await.unwrap();
            let found = addresses.iter().filter(|ip| ip.is_ipv6()).count();
            assert_eq!((addresses.len(), found), (ADDRESSES_MAX, six), "{name}: {addresses:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_waits_for_a_late_family_which_is_known_when_it_comes() {
    let server = DnsServer::new();
    let both = ["2a03:2880::1", "157.240.1.1"];
    let late = Duration::from_millis(1_500);
    server.set("late.test", Says::LateFour(both.iter().map(|ip| ip.parse().unwrap()).collect(), 3_600, late));
    with(&["late.test"], &[server.address()], false, async |names| {
        assert_eq!(names.addresses("late.test").await, ips(&both[..1]));
        eventually(ips(&both), || names.addresses("late.test")).await;
    })
    .await;
}

#[tokio::test]
async fn a_reload_looks_up_again_what_is_known_for_long() {
    let server = DnsServer::new();
    server.set("a.test", Says::addresses(&["157.240.1.1"], 3_600));
    let servers = [server.address()];
    with(&["a.test"], &servers, false, async |before| {
        eventually(ips(&["157.240.1.1"]), || before.addresses("a.test")).await;
        server.set("a.test", Says::addresses(&["157.240.1.2"], 3_600));
        let (names, requests) = Names::new(["a.test".into()].into_iter(), Instant::now());
        names.inherit(before);
        assert_eq!(names.addresses("a.test").await, ips(&["157.240.1.1"]), "it serves at once");
        let destinations = Destinations::new(false, Vec::new());
        tokio::select! {
            () = run(&names, requests, &servers, &destinations) => unreachable!("it runs for ever"),
            () = eventually(ips(&["157.240.1.2"]), || names.addresses("a.test")) => {}
        }
    })
    .await;
}

#[tokio::test]
async fn a_family_that_came_too_late_is_asked_for_again_soon() {
    let server = DnsServer::new();
    let six = "2a03:2880::1".parse().unwrap();
    server.set("late.test", Says::Half(vec![six], 3_600));
    with(&[], &[server.address()], false, async |names| {
        assert_eq!(names.addresses("late.test").await, ips(&["2a03:2880::1"]));
        server.set("late.test", Says::addresses(&["157.240.1.1", "2a03:2880::1"], 3_600));
        assert_eq!(names.addresses("late.test").await, ips(&["2a03:2880::1"]), "not at once");
        age(names, "late.test", Duration::from_secs(60));
        assert_eq!(names.addresses("late.test").await, ips(&["2a03:2880::1", "157.240.1.1"]));
        age(names, "late.test", Duration::from_secs(60));
        let queries = server.queries();
        assert_eq!(names.addresses("late.test").await, ips(&["2a03:2880::1", "157.240.1.1"]));
        assert_eq!(server.queries(), queries, "both are there");
    })
    .await;
}

#[tokio::test]
async fn many_that_ask_at_once_share_one_lookup() {
    let server = DnsServer::new();
    server.set("a.test", Says::addresses(&["157.240.1.1"], 60));
    with(&[], &[server.address()], false, async |names| {
        let first = names.addresses("a.test");
        let second = names.addresses("a.test");
        let (first, second) = tokio::join!(first, second);
        assert_eq!((first, second), (ips(&["157.240.1.1"]), ips(&["157.240.1.1"])));
        assert_eq!(server.queries(), 2);
    })
    .await;
}

#[tokio::test]
async fn failures_are_named_counted_and_remembered() {
    let server = DnsServer::new();
    server.set("fails.test", Says::Fails);
    server.set("silent.test", Says::Silence);
    server.set("lie.test", Says::addresses(&["10.10.34.34", "::1", "::ffff:127.0.0.1"], 60));
    let wanted = [
        ("absent.test", NameFailure::NoSuchName),
        ("fails.test", NameFailure::Unanswered),
        ("silent.test", NameFailure::Unanswered),
        ("lie.test", NameFailure::Refused),
    ];
    with(&[], &[server.address()], false, async |names| {
        for (name, failure) in wanted {
            assert_eq!(names.addresses(name).await, Err(failure), "{name}");
        }
        let queries = server.queries();
        assert_eq!(names.addresses("lie.test").await, Err(NameFailure::Refused));
        assert_eq!(server.queries(), queries);
        let counts = NameFailure::ALL.map(|failure| names.failures(failure));
        assert_eq!(counts, [1, 2, 1, 0]);
    })
    .await;
}

#[tokio::test]
async fn another_configuration_inherits_answers_and_no_failures() {
    let server = DnsServer::new();
    server.set("private.test", Says::addresses(&["10.0.0.1"], 60));
    server.set("public.test", Says::addresses(&["157.240.1.1"], 60));
    let (wanted, servers) = (["private.test", "public.test"], [server.address()]);
    with(&[], &servers, false, async |before| {
        assert_eq!(before.addresses(wanted[0]).await, Err(NameFailure::Refused));
        assert_eq!(before.addresses(wanted[1]).await, ips(&["157.240.1.1"]));
        let (names, requests) = Names::new(wanted.iter().map(|name| (*name).into()), Instant::now());
        names.inherit(before);
        server.set("public.test", Says::Silence);
        let destinations = Destinations::new(true, Vec::new());
        tokio::select! {
            () = run(&names, requests, &servers, &destinations) => unreachable!("it runs for ever"),
            () = async {
                assert_eq!(names.addresses(wanted[0]).await, ips(&["10.0.0.1"]));
                assert_eq!(names.addresses(wanted[1]).await, ips(&["157.240.1.1"]));
            } => {}
        }
    })
    .await;
}

#[tokio::test]
async fn configured_names_follow_a_move_by_themselves() {
    let server = DnsServer::new();
    server.set("a.test", Says::addresses(&["157.240.1.1"], 60));
    with(&["A.test"], &[server.address()], false, async |names| {
        eventually(ips(&["157.240.1.1"]), || names.addresses("a.test")).await;
        server.set("a.test", Says::addresses(&["157.240.1.2"], 60));
        // Four fifths of its time are over; the task is told at its next round.
        age(names, "a.test", Duration::from_secs(50));
        assert_eq!(names.addresses("a.test").await, ips(&["157.240.1.1"]));
        let _ = names.addresses("unknown.test").await;
        eventually(ips(&["157.240.1.2"]), || names.addresses("a.test")).await;
    })
    .await;
}

#[tokio::test]
async fn stale_answers_serve_when_resolvers_fail_or_lie() {
    let lies = [Says::Fails, Says::NoSuchName, Says::addresses(&["10.0.0.1"], 60), Says::Silence];
    for lie in lies {
        let server = DnsServer::new();
        server.set("a.test", Says::addresses(&["157.240.1.1"], 60));
        with(&[], &[server.address()], false, async |names| {
            assert_eq!(names.addresses("a.test").await, ips(&["157.240.1.1"]));
            server.set("a.test", lie.clone());
            age(names, "a.test", Duration::from_secs(3_600));
            assert_eq!(names.addresses("a.test").await, ips(&["157.240.1.1"]), "{lie:?}");
            assert_eq!(names.stale(), 1);
            server.set("a.test", Says::addresses(&["157.240.1.2"], 60));
            sleep(PAUSE_IN_TESTS).await;
            eventually(ips(&["157.240.1.2"]), || names.addresses("a.test")).await;
        })
        .await;
    }
}

/// A little more than the first pause after a failure.
const PAUSE_IN_TESTS: Duration = Duration::from_millis(1_100);

#[tokio::test]
async fn a_name_can_be_renewed_before_its_time() {
    let server = DnsServer::new();
    server.set("a.test", Says::addresses(&["157.240.1.1"], 3_600));
    with(&["a.test"], &[server.address()], false, async |names| {
        eventually(ips(&["157.240.1.1"]), || names.addresses("a.test")).await;
        server.set("a.test", Says::addresses(&["157.240.1.2"], 3_600));
        names.renew("a.test").await;
        assert_eq!(names.addresses("a.test").await, ips(&["157.240.1.1"]), "too soon to ask again");
        age(names, "a.test", Duration::from_secs(10));
        names.renew("a.test").await;
        assert_eq!(names.addresses("a.test").await, ips(&["157.240.1.2"]));
    })
    .await;
}

#[tokio::test]
async fn names_that_clients_choose_are_bounded() {
    let server = DnsServer::new();
    server.set("keep.test", Says::addresses(&["157.240.1.1"], 60));
    with(&["keep.test"], &[server.address()], false, async |names| {
        eventually(ips(&["157.240.1.1"]), || names.addresses("keep.test")).await;
        let (destinations, now) = (Destinations::new(false, Vec::new()), Instant::now());
        for number in 0..NAMES_MAX + 100 {
            let _ = names.learn(&format!("n{number}").into(), Err(NameFailure::NoSuchName), &destinations);
        }
        assert_eq!(names.lock().len(), NAMES_MAX);
        assert!(matches!(names.known(&"keep.test".into(), now), Known::Fresh(_)));
        let newest = format!("n{}", NAMES_MAX + 99);
        assert_eq!(names.known(&newest.as_str().into(), now), Known::Failed(NameFailure::NoSuchName));
    })
    .await;
}

#[tokio::test]
async fn too_many_lookups_are_refused_not_queued() {
    let server = DnsServer::new();
    let all: Vec<_> = (0..LOOKUPS_MAX + 10).map(|number| format!("silent{number}.test")).collect();
    for name in &all {
        server.set(name, Says::Silence);
    }
    with(&[], &[server.address()], false, async |names| {
        let names: &'static Names = Box::leak(Box::new(Names {
            table: Mutex::default(),
            requests: names.requests.clone(),
            failures: Default::default(),
            stale: AtomicU64::new(0),
        }));
        let mut tasks = JoinSet::new();
        for name in all {
            tasks.spawn(async move { names.addresses(&name).await });
        }
        let mut busy = 0;
        while let Some(result) = tasks.join_next().await {
            busy += usize::from(result.unwrap() == Err(NameFailure::Busy));
        }
        assert_eq!(busy, 10);
    })
    .await;
}

#[tokio::test]
async fn names_of_the_hosts_file_need_no_resolver() {
    // The system's configuration; localhost is answered without asking (RFC 6761).
    with(&[], &[], true, async |names| {
        let addresses = names.addresses("localhost").await.unwrap();
        assert!(addresses.iter().all(IpAddr::is_loopback), "{addresses:?}");
    })
    .await;
}

#[tokio::test]
async fn a_dead_resolver_does_not_stop_a_living_one() {
    let (dead, living) = (DnsServer::new(), DnsServer::new());
    dead.set("a.test", Says::Silence);
    living.set("a.test", Says::addresses(&["157.240.1.1"], 60));
    with(&[], &[dead.address(), living.address()], false, async |names| {
        assert_eq!(names.addresses("a.test").await, ips(&["157.240.1.1"]));
    })
    .await;
}

/// Codes of servers that cannot say, or will not: FORMERR, SERVFAIL, NOTIMP, REFUSED, NOTAUTH.
const UNABLE: [u8; 5] = [1, 2, 4, 5, 9];

#[tokio::test]
async fn the_second_server_is_not_asked_while_the_first_answers() {
    let slow = Duration::from_millis(50);
    let unable = UNABLE.map(Says::Code);
    for other in [Says::NoSuchName, Says::addresses(&[], 60)].into_iter().chain(unable) {
        let (first, second) = (DnsServer::new(), DnsServer::new());
        first.set("a.test", Says::LateFour(vec!["157.240.1.1".parse().unwrap()], 60, slow));
        second.set("a.test", other.clone());
        second.set("absent.test", Says::addresses(&["157.240.1.2"], 60));
        with(&[], &[first.address(), second.address()], false, async |names| {
            assert_eq!(names.addresses("a.test").await, ips(&["157.240.1.1"]), "{other:?}");
            assert_eq!(names.addresses("absent.test").await, Err(NameFailure::NoSuchName));
        })
        .await;
        assert_eq!(second.queries(), 0, "{other:?}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_say_hands_over_to_the_next() {
    for code in UNABLE {
        let (first, second) = (DnsServer::new(), DnsServer::new());
        first.set("a.test", Says::Code(code));
        second.set("a.test", Says::addresses(&["157.240.1.1"], 60));
        with(&[], &[first.address(), second.address()], false, async |names| {
            assert_eq!(names.addresses("a.test").await, ips(&["157.240.1.1"]), "{code}");
        })
        .await;
    }
}

#[tokio::test]
async fn no_such_name_from_the_second_does_not_outrun_the_first() {
    let (first, second) = (DnsServer::new(), DnsServer::new());
    let slow = Duration::from_millis(2_500);
    first.set("a.test", Says::LateFour(vec!["157.240.1.1".parse().unwrap()], 60, slow));
    with(&[], &[first.address(), second.address()], false, async |names| {
        assert_eq!(names.addresses("a.test").await, ips(&["157.240.1.1"]));
    })
    .await;
    assert!(second.queries() > 0);
}
