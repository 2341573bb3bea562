//! `/metrics`: a [`Status`] in the words of Prometheus (OpenMetrics text).
//!
//! Names and units follow <https://prometheus.io/docs/practices/naming/>. Labels are names of the configuration and of the
//! code, so that there are no more series than those have.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::status::{Standing, State, Status, Wire};
use crate::account::{CloseReason, Purpose};

/// What the text is.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The whole text.
///
/// # Errors
/// Writing to a string does not fail.
pub(super) fn encode(status: Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposition(status)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Exposition(Status);

/// One value with its labels.
type Value<'a> = (Vec<(&'static str, &'a str)>, f64);

struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn gauge<'v>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        values: impl IntoIterator<Item = Value<'v>>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in values {
            match labels.as_slice() {
                [] => metric.encode_gauge(&value)?,
                _ => metric.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    fn counter<'v>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        values: impl IntoIterator<Item = Value<'v>>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in values {
            match labels.as_slice() {
                [] => metric.encode_counter::<NoLabelSet, _, f64>(&value, None)?,
                _ => metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?,
            }
        }
        Ok(())
    }
}

/// The one value of a metric without labels.
fn one<'a>(value: impl Into<Option<u64>>) -> Option<Value<'a>> {
    value.into().map(|value| (Vec::new(), value as f64))
}

fn flag<'a>(value: bool) -> Option<Value<'a>> {
    one(u64::from(value))
}

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Writer(encoder);
        self.connections(&mut to)?;
        self.upstreams(&mut to)?;
        self.kernel(&mut to)?;
        self.wire(&mut to)?;
        self.limits(&mut to)?;
        self.process(&mut to)
    }
}

impl Exposition {
    fn connections(&self, to: &mut Writer<'_>) -> fmt::Result {
        let status = &self.0;
        let active = status.listeners.iter().flat_map(|listener| {
            let labels = |path| vec![("listener", listener.name.as_str()), ("path", path)];
            listener.active.iter().map(move |(path, count)| (labels(path), *count as f64))
        });
        to.gauge(
            "setu_connections_active",
            None,
            "Open connections, by listener and by how their bytes move (none: not yet)",
            active,
        )?;
        to.counter(
            "setu_connections",
            None,
            "Connections accepted",
            status
                .listeners
                .iter()
                .map(|listener| (vec![("listener", listener.name.as_str())], listener.accepted as f64)),
        )?;
        let useful = status.listeners.iter().flat_map(|listener| {
            Purpose::ALL.map(|purpose| {
                let labels = vec![("listener", listener.name.as_str()), ("kind", purpose.name())];
                (labels, listener.useful(purpose) as f64)
            })
        });
        to.counter(
            "setu_useful_flows",
            None,
            "Connections that were of use to somebody, counted as soon as they are: chat that went on after WhatsApp's \
             server had answered, media that moved more than 16 KiB both ways together",
            useful,
        )?;
        to.counter(
            "setu_closed",
            None,
            "Connections that ended, by reason; those that were refused are among them",
            CloseReason::ALL
                .iter()
                .map(|reason| (vec![("reason", reason.name())], status.ended(*reason) as f64)),
        )?;
        to.counter(
            "setu_bytes",
            None,
            "Bytes handed over, by where they went. Of live connections up to 1 MiB in userspace, and up to a second's \
             worth in the kernel, is not counted yet",
            [
                (vec![("direction", "upstream")], status.bytes.to_upstream as f64),
                (vec![("direction", "client")], status.bytes.to_client as f64),
            ],
        )
    }

    fn upstreams(&self, to: &mut Writer<'_>) -> fmt::Result {
        let status = &self.0;
        let each = |value: fn(&super::Endpoint) -> f64| {
            status.endpoints.iter().map(move |endpoint| {
                let labels =
                    vec![("upstream", endpoint.upstream.as_str()), ("endpoint", endpoint.endpoint.as_str())];
                (labels, value(endpoint))
            })
        };
        to.gauge(
            "setu_upstream_up",
            None,
            "Whether clients are sent to the server: 0 while it does not answer, 1 otherwise, also before it was tried",
            each(|endpoint| f64::from(u8::from(endpoint.standing != Standing::Down))),
        )?;
        to.gauge(
            "setu_upstream_connections",
            None,
            "Connections to the server, attempts included",
            each(|endpoint| endpoint.connections as f64),
        )?;
        to.counter(
            "setu_dns_failures",
            None,
            "Lookups of names that failed, by reason",
            status
                .name_failures
                .iter()
                .map(|(reason, count)| (vec![("reason", reason.as_str())], *count as f64)),
        )?;
        to.counter(
            "setu_dns_stale_answers",
            None,
            "Connections by an address past its time, because no resolver gave a better one",
            one(status.stale_answers),
        )
    }

    fn kernel(&self, to: &mut Writer<'_>) -> fmt::Result {
        let status = &self.0;
        to.gauge(
            "setu_kernel_path_available",
            None,
            "Whether bytes can move in the kernel",
            flag(status.kernel.is_some()),
        )?;
        to.gauge(
            "setu_kernel_flows",
            None,
            "Connections whose bytes move in the kernel now",
            one(status.kernel.map_or(0, |kernel| kernel.flows)),
        )?;
        to.gauge(
            "setu_kernel_reserved",
            Some(Unit::Bytes),
            "Bytes that these may have on their way, of setu_limit_kernel_bytes",
            one(status.kernel.map_or(0, |kernel| kernel.reserved)),
        )?;
        to.counter(
            "setu_kernel_congested",
            None,
            "How often a connection left the kernel because a side could not keep up",
            one(status.kernel.map_or(0, |kernel| kernel.congested)),
        )?;
        to.counter(
            "setu_kernel_streams",
            None,
            "How often a connection left the kernel because it moved more than messages",
            one(status.kernel.map_or(0, |kernel| kernel.streams)),
        )?;
        to.counter(
            "setu_kernel_resumed",
            None,
            "How often a connection that had left for one of these came back",
            one(status.kernel.map_or(0, |kernel| kernel.resumed)),
        )?;
        to.counter(
            "setu_kernel_fallbacks",
            None,
            "Connections that the kernel did not take, and that went through userspace instead, by reason",
            status.fallbacks.iter().map(|(reason, count)| (vec![("reason", reason.as_str())], *count as f64)),
        )
    }

    fn wire(&self, to: &mut Writer<'_>) -> fmt::Result {
        let status = &self.0;
        let of = |value: fn(&Wire) -> u64| one(status.wire.as_ref().map_or(0, value));
        let keeper = status.wire.iter().map(|wire| (Vec::new(), f64::from(wire.keeper)));
        to.gauge("setu_wire_keeper", None, "Whether the process is there that keeps the wire", keeper)?;
        to.gauge("setu_wire_flows", None, "Connections on the wire now", of(|wire| wire.flows))?;
        to.counter(
            "setu_wire_handed_over",
            None,
            "Connections that went on the wire",
            of(|wire| wire.handed_over),
        )?;
        to.counter(
            "setu_wire_busy",
            None,
            "How often a connection was to go on the wire and could not in that moment",
            of(|wire| wire.busy),
        )?;
        to.counter(
            "setu_wire_torn",
            None,
            "Connections that were reset because it could not be shown that every byte had arrived as they went on the wire",
            of(|wire| wire.torn),
        )?;
        to.counter(
            "setu_wire_refused",
            None,
            "Connections that did not go on the wire, by reason",
            status
                .wire_refused
                .iter()
                .map(|(reason, count)| (vec![("reason", reason.as_str())], *count as f64)),
        )
    }

    fn limits(&self, to: &mut Writer<'_>) -> fmt::Result {
        let status = &self.0;
        to.gauge(
            "setu_limit_kernel",
            Some(Unit::Bytes),
            "Bytes that all connections together may have on their way in the kernel",
            status.kernel.and_then(|kernel| one(kernel.budget)),
        )?;
        to.gauge(
            "setu_connections_pending",
            None,
            "Open connections in inspection or handshake",
            one(status.pending),
        )?;
        to.gauge(
            "setu_limit_connections",
            None,
            "Open connections that there may be",
            one(status.limits.connections),
        )?;
        to.gauge(
            "setu_limit_connections_pending",
            None,
            "Connections that may be in inspection or handshake",
            one(status.limits.pending),
        )?;
        to.gauge(
            "setu_limit_connections_per_source",
            None,
            "Open connections that one source may have; absent without a limit",
            one(status.limits.per_source),
        )?;
        to.gauge(
            "setu_limit_connection_rate_per_source",
            None,
            "New connections that one source may open each second; absent without a limit",
            one(status.limits.per_source_rate),
        )?;
        to.gauge(
            "setu_tls_certificate_not_after",
            Some(Unit::Seconds),
            "Until when the certificate of TLS listeners is valid, since 1970; absent without such a listener",
            status.certificate.and_then(|certificate| one(certificate.not_after)),
        )
    }

    fn process(&self, to: &mut Writer<'_>) -> fmt::Result {
        let status = &self.0;
        to.gauge(
            "setu_build_info",
            None,
            "1, with the version",
            [(vec![("version", status.version.as_str())], 1.0)],
        )?;
        to.gauge(
            "setu_configuration_info",
            None,
            "1, with the beginning of the SHA-256 of the effective configuration",
            [(vec![("sha256", status.configuration.as_str())], 1.0)],
        )?;
        to.gauge(
            "setu_config_last_reload_successful",
            None,
            "Whether the last reload was taken, 0 while an older configuration serves than the one that was to; the start \
             counts as one",
            flag(status.reload.refused.is_none()),
        )?;
        to.gauge(
            "setu_config_last_reload_success_timestamp",
            Some(Unit::Seconds),
            "When the configuration was taken that serves, by the start or by a reload, since 1970",
            one(status.reload.taken),
        )?;
        to.gauge("setu_ready", None, "Whether clients are served, as /readyz says", flag(status.ready))?;
        to.gauge(
            "setu_degraded",
            None,
            "Whether clients are served on some ports alone; the status page says on which",
            flag(status.state() == State::Degraded),
        )?;
        to.gauge(
            "setu_draining",
            None,
            "Whether setu was told to stop, and lets connections end",
            flag(status.stopping),
        )?;
        to.counter(
            "setu_log_lines_lost",
            None,
            "Lines of the log that could not be written: nobody reads it, the disk is full, or its reader is too slow",
            one(status.log_lines_lost),
        )?;
        to.gauge(
            "setu_start_time",
            Some(Unit::Seconds),
            "When setu started, since 1970",
            one(status.started),
        )?;
        to.gauge(
            "process_start_time",
            Some(Unit::Seconds),
            "When setu started, since 1970",
            one(status.started),
        )?;
        to.gauge("process_open_fds", None, "Open files", one(status.process.files))?;
        to.gauge("process_max_fds", None, "Limit of open files", one(status.limits.files))?;
        to.gauge(
            "process_resident_memory",
            Some(Unit::Bytes),
            "Resident memory",
            one(status.process.resident),
        )?;
        let cpu = status.process.cpu.map(|seconds| (Vec::new(), seconds));
        to.counter("process_cpu", Some(Unit::Seconds), "CPU time of all threads", cpu)
    }
}
