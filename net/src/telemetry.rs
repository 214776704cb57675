//! What a process tells about itself: log lines, metrics, traces.
//!
//! Every role calls [`init`] once at its start; everything else uses `tracing` and `metrics`
//! directly. Lines go to stderr, metrics to [`crate::admin`], and the trace of a request travels
//! as a W3C `traceparent` from call to call. Nothing is exported to a collector yet.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// Bounds of every histogram whose name ends in `_seconds`.
const SECONDS_BUCKETS: [f64; 15] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0,
];
/// Bounds of every histogram whose name ends in `_bytes`.
const BYTES_BUCKETS: [f64; 9] =
    [256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];
/// How often samples of histograms are folded together when nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

static TELEMETRY: OnceLock<Telemetry> = OnceLock::new();

/// The process's metrics.
#[derive(Clone)]
pub struct Telemetry {
    /// `None` when another recorder was installed first (an embedding program's).
    metrics: Option<PrometheusHandle>,
}

/// Starts logging and metrics for this process.
///
/// Lines go to stderr, filtered by `ATOLL_LOG` (syntax of tracing-subscriber's `EnvFilter`) or
/// else `filter_default`, as text or, with `ATOLL_LOG_FORMAT=json`, one JSON object per line.
/// Further calls change nothing and return the same handle, so that several roles can live in
/// one test process.
pub fn init(role: &str, filter_default: &str) -> Telemetry {
    let telemetry = TELEMETRY.get_or_init(|| {
        start_logging(filter_default);
        Telemetry { metrics: start_metrics(role) }
    });
    telemetry.clone()
}

/// The process's metrics in Prometheus text format; empty before [`init`].
pub fn render_metrics() -> String {
    TELEMETRY.get().map(Telemetry::render).unwrap_or_default()
}

impl Telemetry {
    /// All metrics in Prometheus text format.
    pub fn render(&self) -> String {
        self.metrics.as_ref().map(PrometheusHandle::render).unwrap_or_default()
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("metrics", &self.metrics.is_some()).finish()
    }
}

fn start_logging(filter_default: &str) {
    let wanted = std::env::var("ATOLL_LOG").ok().filter(|filter| !filter.is_empty());
    let (filter, complaint) = match wanted.as_deref().map(EnvFilter::try_new) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(filter_default), Some(error)),
        None => (EnvFilter::new(filter_default), None),
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let json = std::env::var("ATOLL_LOG_FORMAT").is_ok_and(|format| format == "json");
    let started = if json {
        lines.json().flatten_event(true).with_span_list(false).try_init()
    } else {
        let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
        lines.with_ansi(colour).try_init()
    };
    if let Err(error) = started {
        tracing::debug!(%error, "another subscriber receives the log lines");
    }
    if let Some(error) = complaint {
        tracing::warn!(%error, "ATOLL_LOG is not a filter; using {filter_default:?}");
    }
}

fn start_metrics(role: &str) -> Option<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)
        .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_bytes".into()), &BYTES_BUCKETS))
        .and_then(PrometheusBuilder::install_recorder);
    let handle = match handle {
        Ok(handle) => handle,
        Err(error) => {
            tracing::warn!(%error, "metrics are not recorded");
            return None;
        }
    };
    describe();
    metrics::gauge!("atoll_build_info", "version" => env!("CARGO_PKG_VERSION"),
        "role" => role.to_owned())
    .set(1.0);
    let upkeep = handle.clone();
    let thread = std::thread::Builder::new().name("metrics-upkeep".into()).spawn(move || {
        loop {
            std::thread::sleep(UPKEEP_EVERY);
            upkeep.run_upkeep();
        }
    });
    if let Err(error) = thread {
        tracing::warn!(%error, "histograms are folded only when scraped");
    }
    Some(handle)
}

fn describe() {
    describe_gauge!("atoll_build_info", "Version and role of this process.");
    describe_gauge!("atoll_tasks", "Running tasks by name.");
    describe_counter!("atoll_net_bytes_total", Unit::Bytes, "Bytes of frames by direction.");
    describe_counter!("atoll_net_requests_total", "Requests answered, by operation and outcome.");
    describe_histogram!(
        "atoll_net_request_seconds",
        Unit::Seconds,
        "Time from a request's head to its reply, by operation."
    );
    describe_gauge!("atoll_net_requests_in_flight", "Requests being answered, by operation.");
    describe_counter!("atoll_net_calls_total", "Calls made, by role of the peer and outcome.");
    describe_histogram!(
        "atoll_net_call_seconds",
        Unit::Seconds,
        "Time from a call to its answer, by role of the peer."
    );
    describe_gauge!("atoll_net_calls_in_flight", "Calls waiting for an answer, by role.");
    describe_gauge!("atoll_net_connections", "Open connections by side.");
    describe_counter!("atoll_net_connects_total", "Connection attempts by role and outcome.");
}

/// A request's place in a trace, as in W3C Trace Context, level 1: `00-<trace>-<span>-<flags>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    sampled: bool,
}

impl TraceContext {
    /// The start of a new trace.
    pub fn root() -> TraceContext {
        TraceContext { trace_id: random_nonzero(), span_id: random_nonzero(), sampled: false }
    }

    /// A new span below this one.
    #[must_use]
    pub fn child(&self) -> TraceContext {
        TraceContext { span_id: random_nonzero(), ..*self }
    }

    /// Reads a `traceparent` header. Anything that is not one gives `None`, as the standard asks
    /// (a new trace is started then).
    pub fn parse(text: &str) -> Option<TraceContext> {
        let bytes = text.as_bytes();
        let version = hex_bytes::<1>(bytes.get(..2)?)?[0];
        let dashes = [2, 35, 52].into_iter().all(|at| bytes.get(at) == Some(&b'-'));
        // Version 0 has exactly four fields; later versions may append fields after a dash.
        let tail = match bytes.len() {
            55 => true,
            56.. => version != 0 && bytes[55] == b'-',
            _ => false,
        };
        if version == 0xff || !dashes || !tail {
            return None;
        }
        let trace_id = hex_bytes::<16>(&bytes[3..35])?;
        let span_id = hex_bytes::<8>(&bytes[36..52])?;
        let sampled = hex_bytes::<1>(&bytes[53..55])?[0] & 1 == 1;
        if trace_id == [0; 16] || span_id == [0; 8] {
            return None;
        }
        Some(TraceContext { trace_id, span_id, sampled })
    }

    /// The trace's id in hex, for log lines.
    pub fn trace_id(&self) -> String {
        atoll_proto::ids::hex(&self.trace_id)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trace = atoll_proto::ids::hex(&self.trace_id);
        let span = atoll_proto::ids::hex(&self.span_id);
        write!(f, "00-{trace}-{span}-{:02x}", u8::from(self.sampled))
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn random_nonzero<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::Rng::fill(&mut rand::rng(), &mut bytes[..]);
    if bytes == [0; N] {
        bytes[N - 1] = 1;
    }
    bytes
}

/// Lower-case hex only, as the standard asks.
fn hex_bytes<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != N * 2 {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn traceparent_of_the_standard() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = TraceContext::parse(text).unwrap();
        assert_eq!(context.to_string(), text);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let child = context.child();
        assert_eq!(child.trace_id(), context.trace_id());
        assert_ne!(child, context);
    }

    #[test]
    fn what_the_standard_refuses() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for bad in [
            "",
            "00",
            &good.to_uppercase(),
            &good.replace("00-4", "ff-4"),
            &format!("{good}-extra"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
        assert!(TraceContext::parse(&good.replace("00-4", "01-4")).is_some());
        assert!(TraceContext::parse(&format!("01{}-extra", &good[2..])).is_some());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), ascii in "[0-9a-f-]{50,60}") {
            prop_assert!(TraceContext::parse(&text).is_none());
            if let Some(context) = TraceContext::parse(&ascii) {
                prop_assert!(TraceContext::parse(&context.to_string()) == Some(context));
            }
        }
    }

    #[test]
    fn init_twice_gives_the_same_metrics() {
        let first = init("test", "off");
        metrics::counter!("atoll_test_total").increment(3);
        let second = init("other", "info");
        assert!(first.render().contains("atoll_test_total 3"));
        assert!(second.render().contains("atoll_build_info"));
        assert!(render_metrics().contains("role=\"test\""));
    }
}
