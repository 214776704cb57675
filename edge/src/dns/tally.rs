//! What answers are counted under, and counters that cost a hot loop nothing: plain numbers, handed
//! to the metrics once in a while.

use std::time::Duration;

use super::answer::{Answer, Transport};
use super::atlas::Reason;

/// The type that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Who may issue certificates.
    Caa,
    /// Another name.
    Cname,
    /// Service binding for HTTPS.
    Https,
    /// Name servers.
    Ns,
    /// What a zone says of itself.
    Soa,
    /// Text.
    Txt,
    /// Any other.
    Other,
}

/// The response code of the hot path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// There is an answer, or nothing of this type.
    NoError,
    /// There is no such name.
    NxDomain,
    /// The name is not ours.
    Refused,
}

/// What one answer of the hot path is counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The type asked for.
    pub asked: Asked,
    /// The response code.
    pub code: Code,
    /// The rule that placed the client, if it was looked for.
    pub reason: Option<Reason>,
    /// Equal for equal answers, for the limit of them.
    pub same: u64,
    /// The asker showed a cookie of ours: its address is not forged.
    pub trusted: bool,
}

impl Asked {
    const ALL: [&'static str; 9] =
        ["A", "AAAA", "CAA", "CNAME", "HTTPS", "NS", "SOA", "TXT", "other"];

    /// By its number.
    pub(super) fn of(kind: u16) -> Asked {
        match kind {
            1 => Asked::A,
            2 => Asked::Ns,
            5 => Asked::Cname,
            6 => Asked::Soa,
            16 => Asked::Txt,
            28 => Asked::Aaaa,
            65 => Asked::Https,
            257 => Asked::Caa,
            _ => Asked::Other,
        }
    }

    /// As metrics name it.
    pub(super) fn label(self) -> &'static str {
        Asked::ALL[self as usize]
    }
}

impl Code {
    const ALL: [&'static str; 3] = ["NOERROR", "NXDOMAIN", "REFUSED"];

    /// Its number.
    pub(super) fn low(self) -> u8 {
        match self {
            Code::NoError => 0,
            Code::NxDomain => 3,
            Code::Refused => 5,
        }
    }

    /// As metrics name it.
    pub(super) fn label(self) -> &'static str {
        Code::ALL[self as usize]
    }
}

/// Counters of one thread over UDP.
#[derive(Debug, Default)]
pub(super) struct Tally {
    queries: [[u64; Code::ALL.len()]; Asked::ALL.len()],
    reasons: [u64; Reason::ALL.len()],
    pub(super) dropped: u64,
    pub(super) limited: u64,
    pub(super) cut: u64,
    pub(super) unsent: u64,
}

impl Tally {
    /// Counts an answer of the hot path.
    pub(super) fn count(&mut self, counted: &Counted) {
        self.queries[counted.asked as usize][counted.code as usize] += 1;
        if let Some(reason) = counted.reason {
            self.reasons[reason as usize] += 1;
        }
    }

    /// Hands the numbers to the metrics and begins again.
    pub(super) fn flush(&mut self) {
        for (asked, codes) in Asked::ALL.iter().zip(&self.queries) {
            for (code, number) in Code::ALL.iter().zip(codes).filter(|(_, number)| **number > 0) {
                queries(asked, code, Transport::Udp, *number);
            }
        }
        for (reason, number) in Reason::ALL.iter().zip(self.reasons).filter(|(_, n)| *n > 0) {
            reasons(reason.label(), number);
        }
        let count = |name: &'static str, number: u64| {
            if number > 0 {
                metrics::counter!(name).increment(number);
            }
        };
        count("atoll_dns_packets_dropped_total", self.dropped);
        count("atoll_dns_responses_limited_total", self.limited);
        count("atoll_dns_responses_cut_total", self.cut);
        count("atoll_dns_replies_unsent_total", self.unsent);
        *self = Tally::default();
    }
}

/// Counts one answer that the codec made.
pub(super) fn count(answer: &Answer, transport: Transport) {
    queries(answer.asked, answer.code, transport, 1);
    if let Some(reason) = answer.reason {
        reasons(reason, 1);
    }
}

/// Counts one answer of the hot path over a connection.
pub(super) fn count_one(counted: &Counted, transport: Transport) {
    queries(counted.asked.label(), counted.code.label(), transport, 1);
    if let Some(reason) = counted.reason {
        reasons(reason.label(), 1);
    }
}

/// Notes how long an answer took; over UDP, how long all of a batch took, once for all.
pub(super) fn took(transport: Transport, time: Duration) {
    metrics::histogram!("atoll_dns_answer_seconds", "transport" => label(transport))
        .record(time.as_secs_f64());
}

fn queries(asked: &'static str, code: &'static str, transport: Transport, number: u64) {
    metrics::counter!(
        "atoll_dns_queries_total",
        "type" => asked, "rcode" => code, "transport" => label(transport)
    )
    .increment(number);
}

fn reasons(reason: &'static str, number: u64) {
    metrics::counter!("atoll_dns_routes_total", "reason" => reason).increment(number);
}

fn label(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
    }
}
