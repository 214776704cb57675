//! Datagrams: one socket towards the target for each address that sends.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::line::{Line, QUEUE_BYTES_MAX, QUEUE_ITEMS_MAX};
use super::{Direction, Link};
use tokio::sync::mpsc;

/// The largest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Most addresses at a time; datagrams of others are lost.
const SENDERS_MAX: usize = 1024;
/// A sender that is silent for so long is forgotten.
const SILENCE: Duration = Duration::from_secs(120);
/// Datagrams from one sender that its task has not taken yet.
const TAKEN_MAX: usize = 1024;

/// Passes datagrams on until it is aborted.
pub(super) async fn run(socket: UdpSocket, target: SocketAddr, link: Arc<Link>) {
    let socket = Arc::new(socket);
    let mut senders: HashMap<SocketAddr, mpsc::Sender<Bytes>> = HashMap::new();
    let mut sessions = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error is what the system heard about a datagram sent before: nothing to act on.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        while sessions.try_join_next().is_some() {}
        let sender = match senders.get(&from).filter(|sender| !sender.is_closed()) {
            Some(sender) => sender.clone(),
            None => {
                senders.retain(|_, sender| !sender.is_closed());
                if senders.len() >= SENDERS_MAX {
                    link.count(false);
                    continue;
                }
                let (sender, taken) = mpsc::channel(TAKEN_MAX);
                let session = session(socket.clone(), from, target, taken, link.clone());
                sessions.spawn(session);
                senders.insert(from, sender.clone());
                sender
            }
        };
        if sender.try_send(Bytes::copy_from_slice(&buffer[..length])).is_err() {
            link.count(false);
        }
    }
}

/// What is between one sender and the target.
async fn session(
    outside: Arc<UdpSocket>,
    from: SocketAddr,
    target: SocketAddr,
    mut taken: mpsc::Receiver<Bytes>,
    link: Arc<Link>,
) {
    let Ok(inside) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { return };
    if inside.connect(target).await.is_err() {
        return;
    }
    let (there, back) = link.lines();
    let mut there = Queue::new(there, Direction::There);
    let mut back = Queue::new(back, Direction::Back);
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    let mut heard = Instant::now();
    loop {
        let next = [there.next(), back.next(), Some(heard + SILENCE)];
        let next = next.into_iter().flatten().min().unwrap_or(heard + SILENCE);
        tokio::select! {
            datagram = taken.recv() => {
                let Some(datagram) = datagram else { return };
                heard = Instant::now();
                there.put(datagram, &link);
            }
            received = inside.recv(&mut buffer) => {
                // The target is away: its port is closed. That is no end of the link.
                if let Ok(length) = received {
                    heard = Instant::now();
                    back.put(Bytes::copy_from_slice(&buffer[..length]), &link);
                }
            }
            () = sleep_until(next) => {
                if heard.elapsed() >= SILENCE {
                    return;
                }
            }
        }
        let now = Instant::now();
        while let Some(datagram) = there.take(now) {
            link.count(inside.send(&datagram).await.is_ok());
        }
        while let Some(datagram) = back.take(now) {
            link.count(outside.send_to(&datagram, from).await.is_ok());
        }
    }
}

/// Datagrams on their way in one direction.
struct Queue {
    line: Line,
    direction: Direction,
    waiting: BinaryHeap<Due>,
    bytes: usize,
    number: u64,
}

impl Queue {
    fn new(line: Line, direction: Direction) -> Self {
        Self { line, direction, waiting: BinaryHeap::new(), bytes: 0, number: 0 }
    }

    fn put(&mut self, datagram: Bytes, link: &Link) {
        let way = *link.way(self.direction).borrow();
        let arrivals = self.line.datagram(&way, datagram.len(), Instant::now());
        if arrivals.first.is_none() {
            link.count(false);
        }
        for at in [arrivals.first, arrivals.again].into_iter().flatten() {
            let bytes = self.bytes + datagram.len();
            if bytes > QUEUE_BYTES_MAX || self.waiting.len() >= QUEUE_ITEMS_MAX {
                link.count(false);
                continue;
            }
            self.bytes = bytes;
            self.number += 1;
            self.waiting.push(Due { at, number: self.number, datagram: datagram.clone() });
        }
    }

    fn next(&self) -> Option<Instant> {
        self.waiting.peek().map(|due| due.at)
    }

    /// One that has arrived.
    fn take(&mut self, now: Instant) -> Option<Bytes> {
        if self.next()? > now {
            return None;
        }
        let due = self.waiting.pop()?;
        self.bytes -= due.datagram.len();
        Some(due.datagram)
    }
}

struct Due {
    at: Instant,
    /// Those that arrive at the same moment keep their order.
    number: u64,
    datagram: Bytes,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives its greatest: that is the earliest.
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}
