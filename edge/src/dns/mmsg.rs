//! Many datagrams in one system call: `recvmmsg` and `sendmmsg`.
//!
//! The only file of DNS with unsafe code. It owns the buffers that the kernel reads and writes
//! and hands out plain slices; what is in them is decided by [`super::udp`].
#![allow(unsafe_code, reason = "recvmmsg and sendmmsg take structures of pointers")]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr::null_mut;

/// Datagrams in one call.
pub(super) const BATCH: usize = 64;
/// Longest query that is read whole; of longer ones the beginning is, which is malformed.
pub(super) const QUERY_BYTES: usize = 2048;

/// Buffers for one thread.
pub(super) struct Batch {
    queries: Box<[[u8; QUERY_BYTES]; BATCH]>,
    froms: Box<[libc::sockaddr_storage; BATCH]>,
    lengths: [(usize, libc::socklen_t); BATCH],
    /// Replies to the queries, in their order; empty where there is none.
    pub(super) replies: Vec<Vec<u8>>,
}

impl Batch {
    pub(super) fn new() -> Batch {
        Batch {
            queries: Box::new([[0; QUERY_BYTES]; BATCH]),
            // SAFETY: all zero is a valid address storage (of no family).
            froms: Box::new([unsafe { zeroed() }; BATCH]),
            lengths: [(0, 0); BATCH],
            replies: (0..BATCH).map(|_| Vec::with_capacity(QUERY_BYTES)).collect(),
        }
    }

    /// Waits for a datagram, for as long as the socket's read timeout says, and takes those that
    /// are there. Returns how many.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // SAFETY: all zero is a valid message header (without buffers) and a valid vector.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut vectors: [libc::iovec; BATCH] = unsafe { zeroed() };
        let parts = headers.iter_mut().zip(&mut vectors);
        let buffers = self.queries.iter_mut().zip(self.froms.iter_mut());
        for ((header, vector), (query, from)) in parts.zip(buffers) {
            vector.iov_base = query.as_mut_ptr().cast();
            vector.iov_len = QUERY_BYTES;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = std::ptr::from_mut(from).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        }
        // SAFETY: every header points to a vector and an address storage that live until the call
        // returns, every vector to a buffer of its length, and nobody else has any of them. No
        // timeout is given: the socket's own holds.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_WAITFORONE,
                null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (length, header) in self.lengths.iter_mut().zip(&headers[..received]) {
            *length = ((header.msg_len as usize).min(QUERY_BYTES), header.msg_hdr.msg_namelen);
        }
        Ok(received)
    }

    /// The datagram with this number, from whom it is, and the buffer for its reply. Nothing if
    /// the sender has no address that could be answered.
    pub(super) fn query(&mut self, number: usize) -> Option<(&[u8], SocketAddr, &mut Vec<u8>)> {
        let reply = &mut self.replies[number];
        reply.clear();
        let from = address(&self.froms[number])?;
        Some((&self.queries[number][..self.lengths[number].0], from, reply))
    }

    /// Sends the replies to the first `number` queries. Returns how many could not be sent.
    pub(super) fn send(&mut self, socket: &UdpSocket, number: usize) -> u64 {
        // SAFETY: all zero is a valid message header (without buffers) and a valid vector.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut vectors: [libc::iovec; BATCH] = unsafe { zeroed() };
        let mut used = 0;
        let whole = self.replies[..number].iter_mut().zip(self.froms.iter_mut());
        for ((reply, from), (_, from_length)) in whole.zip(&self.lengths) {
            if reply.is_empty() {
                continue;
            }
            vectors[used].iov_base = reply.as_mut_ptr().cast();
            vectors[used].iov_len = reply.len();
            let header = &mut headers[used].msg_hdr;
            header.msg_iov = &mut vectors[used];
            header.msg_iovlen = 1;
            header.msg_name = std::ptr::from_mut(from).cast();
            header.msg_namelen = *from_length;
            used += 1;
        }
        let (mut sent, mut failed) = (0, 0);
        while sent < used {
            // SAFETY: as in `receive`; the headers from `sent` up to `used` are filled in.
            let more = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    headers[sent..used].as_mut_ptr(),
                    (used - sent) as libc::c_uint,
                    0,
                )
            };
            match usize::try_from(more) {
                Ok(more) if more > 0 => sent += more,
                // The first of them cannot be sent, to whomever it goes: the others can.
                _ => {
                    sent += 1;
                    failed += 1;
                }
            }
        }
        failed
    }
}

/// Reads an address that the kernel wrote.
fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: a storage of this family holds this structure, and is large enough and
            // aligned for every one.
            let v4 = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let addr = Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::V4(SocketAddrV4::new(addr, u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let addr = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddr::V6(SocketAddrV6::new(addr, u16::from_be(v6.sin6_port), 0, 0)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use super::*;

    #[test]
    fn datagrams_come_and_go_in_batches() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(server) = UdpSocket::bind(host) else { continue };
            server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let client = UdpSocket::bind(host).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            client.connect(server.local_addr().unwrap()).unwrap();
            let mut batch = Batch::new();
            for number in 0..10u8 {
                client.send(&[number; 5]).unwrap();
            }
            client.send(&[7; QUERY_BYTES + 100]).unwrap();
            let mut seen = 0;
            while seen < 11 {
                let received = batch.receive(&server).unwrap();
                for number in 0..received {
                    let (query, from, reply) = batch.query(number).unwrap();
                    assert_eq!(from, client.local_addr().unwrap());
                    assert_eq!(query.len(), if seen == 10 { QUERY_BYTES } else { 5 });
                    // Every other one is answered.
                    if seen % 2 == 0 && seen < 10 {
                        reply.extend([query[0], 99]);
                    }
                    seen += 1;
                }
                assert_eq!(batch.send(&server, received), 0);
            }
            let mut buffer = [0; 10];
            for number in [0, 2, 4, 6, 8] {
                assert_eq!(client.recv(&mut buffer).unwrap(), 2);
                assert_eq!(buffer[..2], [number, 99]);
            }
        }
    }

    #[test]
    fn waiting_ends_with_the_timeout() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let error = Batch::new().receive(&server).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
