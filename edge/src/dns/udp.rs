//! Answering over UDP: a thread for each processor, each with a socket of its own on the same port
//! (`SO_REUSEPORT`), so that no two wait for each other.
//!
//! A thread takes what has arrived, answers it out of memory, and sends the replies, each in one
//! system call. Nothing in it waits for anything but the next datagram.

use std::io;
use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, UNIX_EPOCH};

use arc_swap::{ArcSwap, Cache};

use super::answer::{Answerer, Asker, Transport};
use super::limit::{Judgement, Limiter};
use super::mmsg::Batch;
use super::tally::{self, Tally};
use crate::clock;

/// How often a thread without work looks whether it should end, and hands over its counters.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a reply may wait for room in the socket's buffer.
const SEND_MAX: Duration = Duration::from_millis(100);
/// How often a busy thread hands over its counters.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// Pause after an error of a socket, so that a lasting one does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(20);
/// Room for datagrams that arrive while a thread does not run, in bytes.
const BUFFER_BYTES: usize = 1 << 20;

/// What the threads have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) current: Arc<ArcSwap<Answerer>>,
    pub(super) limiter: Option<Limiter>,
    pub(super) stop: AtomicBool,
}

/// Binds `threads` sockets to the port of `listen`, which no other process may have.
pub(super) fn bind(listen: std::net::SocketAddr, threads: usize) -> io::Result<Vec<UdpSocket>> {
    let mut sockets = Vec::new();
    for index in 0..threads {
        let domain = socket2::Domain::for_address(listen);
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
        // The first takes the port for itself and shares it afterwards: with the option set
        // before, it would share the port with any other process of this user that set it too.
        if index > 0 {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&listen.into())?;
        socket.set_reuse_port(true)?;
        // A hint: the system may give less.
        drop(socket.set_recv_buffer_size(BUFFER_BYTES));
        drop(socket.set_send_buffer_size(BUFFER_BYTES));
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(LOOK_EVERY))?;
        socket.set_write_timeout(Some(SEND_MAX))?;
        sockets.push(socket);
    }
    Ok(sockets)
}

/// Starts a thread for each socket.
pub(super) fn start(
    sockets: Vec<UdpSocket>,
    shared: &Arc<Shared>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let thread = |(index, socket): (usize, UdpSocket)| {
        let shared = shared.clone();
        let builder = std::thread::Builder::new().name(format!("dns-udp-{index}"));
        builder.spawn(move || serve(&socket, &shared))
    };
    sockets.into_iter().enumerate().map(thread).collect()
}

fn serve(socket: &UdpSocket, shared: &Shared) {
    let mut batch = Batch::new();
    let mut tally = Tally::default();
    let mut current = Cache::new(&*shared.current);
    let mut flushed = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        let received = match batch.receive(socket) {
            Ok(received) => received,
            Err(error) => {
                if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
                    tracing::warn!(%error, "receiving a dns query failed");
                    std::thread::sleep(ERROR_PAUSE);
                }
                0
            }
        };
        let started = Instant::now();
        if received > 0 {
            let answerer = current.load();
            let now = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
            for number in 0..received {
                answer(answerer, shared, &mut batch, number, now, &mut tally);
            }
            tally.unsent += batch.send(socket, received);
            tally::took(Transport::Udp, started.elapsed());
        }
        if received == 0 || started.duration_since(flushed) >= FLUSH_EVERY {
            tally.flush();
            flushed = started;
        }
    }
    tally.flush();
}

/// Answers one query of a batch. A panic costs that query its reply and not everyone theirs.
fn answer(
    answerer: &Answerer,
    shared: &Shared,
    batch: &mut Batch,
    number: usize,
    now: Duration,
    tally: &mut Tally,
) {
    let Some((query, from, reply)) = batch.query(number) else {
        tally.dropped += 1;
        return;
    };
    // The lower bits are all that cookies take.
    let now_secs = now.as_secs() as u32;
    let asker = Asker { from: from.ip(), transport: Transport::Udp, now_secs };
    let answered = catch_unwind(AssertUnwindSafe(|| {
        if let Some(counted) = answerer.answer_fast(query, asker, reply) {
            tally.count(&counted);
            return Some((counted.same, counted.trusted));
        }
        reply.clear();
        let answer = answerer.answer(query, asker)?;
        tally::count(&answer, Transport::Udp);
        reply.extend_from_slice(&answer.packet);
        Some((answer.same, answer.trusted))
    }));
    let (same, trusted) = match answered {
        Ok(Some(answered)) => answered,
        Ok(None) => {
            reply.clear();
            tally.dropped += 1;
            return;
        }
        Err(_) => {
            reply.clear();
            metrics::counter!("atoll_dns_panics_total").increment(1);
            tracing::error!("answering a dns query panicked");
            return;
        }
    };
    let Some(limiter) = shared.limiter.as_ref().filter(|_| !trusted) else { return };
    // Microseconds of half a million years.
    let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    match limiter.judge(from.ip(), same, now_us) {
        Judgement::Send => {}
        Judgement::Cut => {
            if !answerer.cut_fast(query, asker, reply) {
                cut(reply);
            }
            tally.cut += 1;
        }
        Judgement::Drop => {
            reply.clear();
            tally.limited += 1;
        }
    }
}

/// Leaves only header and question of a reply and marks it as cut, so that whoever really asked
/// comes back over TCP.
fn cut(reply: &mut Vec<u8>) {
    const HEADER_BYTES: usize = 12;
    let question = match (reply.get(5), reply.get(HEADER_BYTES..)) {
        (Some(1), Some(rest)) => super::names::WireName::read(rest).map(|(_, length)| length + 4),
        _ => None,
    };
    let length = HEADER_BYTES + question.unwrap_or(0);
    if reply.len() < length {
        reply.clear();
        return;
    }
    reply.truncate(length);
    reply[2] |= 0x02;
    reply[4..HEADER_BYTES].copy_from_slice(&[0, u8::from(question.is_some()), 0, 0, 0, 0, 0, 0]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_port_is_shared_by_own_threads_only() {
        let sockets = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let addr = sockets[0].local_addr().unwrap();
        assert_eq!(bind(addr, 2).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn what_is_cut_is_header_and_question() {
        let mut reply = vec![1, 2, 0x84, 0, 0, 1, 0, 2, 0, 0, 0, 1];
        reply.extend(b"\x01a\x00\x00\x01\x00\x01 and records");
        cut(&mut reply);
        assert_eq!(reply.len(), 12 + 7);
        assert_eq!(reply[..12], [1, 2, 0x86, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        let mut reply = vec![0; 11];
        cut(&mut reply);
        assert!(reply.is_empty());
        let mut none = vec![0; 14];
        cut(&mut none);
        assert_eq!(none.len(), 12);
    }
}
