//! What is measured, one by one.

use std::time::Duration;

use crate::{
    load::{First, Flows, Load, Reading},
    peers::Service,
};

/// One thing that is measured, for every peer that offers it.
#[derive(Clone)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// In words.
    pub(crate) title: String,
    pub(crate) service: Service,
    pub(crate) load: Load,
    pub(crate) unit: Unit,
    /// Of a full round.
    pub(crate) time: Duration,
    /// For how long its connections do the same before, so that what is measured is how they go on.
    pub(crate) settling: Duration,
}

/// What the work is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Gbit/s; costs are for a GB.
    Bytes,
    /// So many a second; costs are for each.
    Count(&'static str),
    /// The work is the same for all; costs are for a second.
    Paced,
    /// Nothing moves; memory is for each connection.
    Memory,
}

impl Unit {
    /// From work and seconds.
    pub(crate) fn rate(self, work: u64, seconds: f64) -> f64 {
        match self {
            Self::Bytes => work as f64 * 8.0 / 1e9 / seconds,
            Self::Count(_) | Self::Paced | Self::Memory => work as f64 / seconds,
        }
    }

    /// What core-seconds are divided by.
    pub(crate) fn share(self, work: u64, seconds: f64) -> f64 {
        match self {
            Self::Bytes => work as f64 / 1e9,
            // A core-second for a million is a microsecond for each.
            Self::Count(_) => work as f64 / 1e6,
            Self::Paced | Self::Memory => seconds,
        }
    }

    /// Of the rate.
    pub(crate) fn rate_name(self) -> String {
        match self {
            Self::Bytes => "Gbit/s".into(),
            Self::Count(what) => format!("{what}/s"),
            Self::Paced | Self::Memory => "messages/s".into(),
        }
    }

    /// Of the costs.
    pub(crate) fn cost_name(self) -> &'static str {
        match self {
            Self::Bytes => "core-s/GB",
            Self::Count(_) => "core-µs each",
            Self::Paced | Self::Memory => "cores",
        }
    }
}

/// Bytes of a chat message.
const MESSAGE: usize = 256;

/// With `relay.path = "auto"` a flow's way is known after one or two seconds. A quick run does not make it shorter.
const SETTLING: Duration = Duration::from_secs(3);
/// The same for connections that do nothing: from the last one's opening to the look at the memory.
const IDLE: Duration = Duration::from_secs(4);

/// All of them, in the order of the report.
pub(crate) fn all() -> Vec<Scenario> {
    let time = Duration::from_secs(2);
    let plain = |name, title: String, load, unit| {
        let settling = if matches!(load, Load::Echo(_)) { SETTLING } else { Duration::ZERO };
        Scenario { name, title, service: Service::Plain, load, unit, time, settling }
    };
    let flows = |connections| Flows { connections, message: MESSAGE, interval_milliseconds: None };
    let mut all = Vec::new();
    for (name, streams, up) in
        [("bulk-1-down", 1, false), ("bulk-8-down", 8, false), ("bulk-1-up", 1, true), ("bulk-8-up", 8, true)]
    {
        let title = format!(
            "Bulk, {} {}",
            if streams == 1 { "one stream".into() } else { format!("{streams} streams") },
            if up { "from the client" } else { "to the client" }
        );
        all.push(plain(name, title, Load::Bulk { streams, up }, Unit::Bytes));
    }
    for (name, connections) in
        [("ping-pong-1", 1), ("ping-pong-32", 32), ("ping-pong-500", 500), ("ping-pong-4000", 4000)]
    {
        let title = format!("Ping-pong of {MESSAGE} bytes, connections: {connections}");
        all.push(plain(name, title, Load::Echo(vec![flows(connections)]), Unit::Count("messages")));
    }
    let churn = |name, title: &str, service, first, unit| {
        let load = Load::Churn { workers: 64, first };
        Scenario { name, title: title.into(), service, load, unit, time, settling: Duration::ZERO }
    };
    all.push(churn(
        "connections",
        "New connections: connect, one message, close; 64 at once",
        Service::Plain,
        First::Message,
        Unit::Count("connections"),
    ));
    all.push(churn(
        "sni-connections",
        "New connections that are routed by SNI; 64 at once",
        Service::Sni,
        First::ClientHello,
        Unit::Count("connections"),
    ));
    all.push(churn(
        "tls-handshakes",
        "Full TLS 1.3 handshakes that end at the proxy; 64 at once",
        Service::Tls,
        First::Handshake,
        Unit::Count("handshakes"),
    ));
    all.push(Scenario {
        name: "tls-ping-pong-32",
        title: format!("Ping-pong of {MESSAGE} bytes through TLS that ends at the proxy, connections: 32"),
        service: Service::Tls,
        load: Load::TlsEcho(flows(32)),
        unit: Unit::Count("messages"),
        time,
        settling: SETTLING,
    });
    let stall = Duration::from_secs(5);
    for (name, title, connections, reading, time) in [
        ("idle", "Idle connections: 4,000", 4000, Reading::Nothing, IDLE),
        ("stalled", "Readers that stall: 100, memory after 5 s", 100, Reading::Never, stall),
        (
            "stalled-after-reading",
            "Readers that read for 2 s and then stall: 100, memory 5 s later",
            100,
            Reading::AtFirst(2000),
            stall,
        ),
    ] {
        let load = Load::Hold { connections, reading };
        all.push(Scenario { time, ..plain(name, title.into(), load, Unit::Memory) });
    }
    let chat = Flows { connections: 2000, message: MESSAGE, interval_milliseconds: Some(5000) };
    // 12,500 bytes each 50 ms are 2 Mbit/s, each way.
    let media = Flows { connections: 20, message: 12_500, interval_milliseconds: Some(50) };
    all.push(Scenario {
        time: Duration::from_secs(10),
        ..plain(
            "phones",
            "Phones: 2,000 chats with a message each 5 s, 20 media flows of 2 Mbit/s each way".into(),
            Load::Echo(vec![chat, media]),
            Unit::Paced,
        )
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_rates_in_their_units() {
        let mut names: Vec<_> = all().iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().len());
        assert!((Unit::Bytes.rate(2_500_000_000, 2.0) - 10.0).abs() < 1e-9);
        assert!((3.0 / Unit::Count("messages").share(1_500_000, 9.0) - 2.0).abs() < 1e-9);
    }
}
