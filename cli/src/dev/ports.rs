//! Free ports of this machine.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

use rand::Rng;

use super::plan::{PortSource, Transport};

/// Ports below this one are for well-known services; browsers refuse some of them.
const LOWEST: u16 = 20_000;
/// Where the kernel says from which range it takes ports for outgoing connections.
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const TRIES: usize = 1000;
/// Ports of a block; whoever has the first one bound (for UDP) may give the others to its processes.
const BLOCK: u16 = 64;

/// The blocks of this process, which has them until it ends. Between the choice of a port and the
/// start of the process that gets it the port is free, and nobody else must choose it meanwhile.
static OWN: Mutex<Own> = Mutex::new(Own { guards: Vec::new(), next: 0, end: 0 });

#[derive(Debug)]
struct Own {
    guards: Vec<UdpSocket>,
    /// The next port of the latest block.
    next: u16,
    end: u16,
}

impl Own {
    /// A port of a block that is this process's own; nothing when every block has an owner.
    fn port(&mut self, highest: u16) -> Option<u16> {
        if self.next == self.end {
            let blocks = (highest - LOWEST) / BLOCK;
            let (guard, first) = (0..TRIES).find_map(|_| {
                let first = LOWEST + rand::rng().random_range(0..blocks) * BLOCK;
                Some((UdpSocket::bind((Ipv4Addr::LOCALHOST, first)).ok()?, first))
            })?;
            self.guards.push(guard);
            (self.next, self.end) = (first + 1, first + BLOCK);
        }
        self.next += 1;
        Some(self.next - 1)
    }
}

/// Ports on the loopback address that nobody uses. They stay taken until this is dropped, so that
/// none is given twice.
///
/// New ports come from below the range of outgoing connections: a process that is stopped and
/// started again must find its port free, and in that range any connection may take it meanwhile.
pub(crate) struct FreePorts {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    given: BTreeSet<u16>,
    /// With `--port-base`: the next port.
    next: Option<u16>,
}

impl FreePorts {
    /// From `base` upwards one after the other, or any.
    pub(crate) fn new(base: Option<u16>) -> Self {
        Self { tcp: Vec::new(), udp: Vec::new(), given: BTreeSet::new(), next: base }
    }

    /// Never gives this port: a process that is stopped now has it.
    pub(crate) fn avoid(&mut self, port: Option<u16>) {
        self.given.extend(port);
    }

    fn take(&mut self, transport: Transport, port: u16) -> std::io::Result<()> {
        let addr = (Ipv4Addr::LOCALHOST, port);
        let tcp = match transport {
            Transport::Tcp | Transport::Both => Some(TcpListener::bind(addr)?),
            Transport::Udp => None,
        };
        let udp = match transport {
            Transport::Udp | Transport::Both => Some(UdpSocket::bind(addr)?),
            Transport::Tcp => None,
        };
        self.tcp.extend(tcp);
        self.udp.extend(udp);
        self.given.insert(port);
        Ok(())
    }
}

impl PortSource for FreePorts {
    fn fresh(&mut self, transport: Transport) -> Result<u16, String> {
        if let Some(port) = self.next {
            self.take(transport, port)
                .map_err(|error| format!("port {port} (--port-base): {error}"))?;
            self.next = port.checked_add(1);
            return Ok(port);
        }
        let highest = ephemeral().filter(|from| *from > LOWEST + 1000).unwrap_or(u16::MAX);
        for _ in 0..TRIES {
            let own = OWN.lock().unwrap_or_else(PoisonError::into_inner).port(highest);
            let port = own.unwrap_or_else(|| rand::rng().random_range(LOWEST..highest));
            if !self.given.contains(&port) && self.take(transport, port).is_ok() {
                return Ok(port);
            }
        }
        Err(format!("found no free port between {LOWEST} and {highest}"))
    }

    fn keep(&mut self, transport: Transport, port: u16) -> bool {
        self.take(transport, port).is_ok()
    }
}

/// The lowest port that the kernel gives to outgoing connections.
fn ephemeral() -> Option<u16> {
    let range = std::fs::read_to_string(EPHEMERAL).ok()?;
    range.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_port_is_free_and_given_once() {
        let mut ports = FreePorts::new(None);
        let one = ports.fresh(Transport::Both).unwrap();
        let two = ports.fresh(Transport::Udp).unwrap();
        assert_ne!(one, two);
        assert!(!ports.keep(Transport::Tcp, one), "it is taken");
        drop(ports);
        assert!(FreePorts::new(None).keep(Transport::Both, one));
    }

    #[test]
    fn two_processes_take_ports_of_different_blocks() {
        let none = || Own { guards: Vec::new(), next: 0, end: 0 };
        let (mut one, mut two) = (none(), none());
        let highest = LOWEST + 100 * BLOCK;
        let blocks = |own: &mut Own| -> BTreeSet<u16> {
            (0..BLOCK * 3).map(|_| (own.port(highest).unwrap() - LOWEST) / BLOCK).collect()
        };
        let (first, second) = (blocks(&mut one), blocks(&mut two));
        assert!(first.is_disjoint(&second), "{first:?} {second:?}");
        let ports = FreePorts::new(None).fresh(Transport::Both).unwrap();
        assert_ne!((ports - LOWEST) % BLOCK, 0, "that one says whose the block is");
    }

    #[test]
    fn a_base_is_counted_up_from() {
        let base = FreePorts::new(None).fresh(Transport::Both).unwrap();
        let mut ports = FreePorts::new(Some(base));
        assert_eq!(ports.fresh(Transport::Both).unwrap(), base);
        ports.avoid(Some(7));
        assert!(ports.given.contains(&7));
        let mut blocked = FreePorts::new(Some(base));
        assert!(blocked.fresh(Transport::Tcp).unwrap_err().contains("--port-base"));
    }
}
