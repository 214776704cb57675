//! Sockets of the listeners: one port number for TCP and UDP, large buffers for UDP.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// Buffers of the UDP socket. With the usual 208 KiB a burst of new connections is dropped.
const UDP_BUFFER_BYTES: usize = 8 << 20;
const BACKLOG: i32 = 4096;
/// How often a port from the system is tried that is free for TCP but not for UDP.
const TRIES: usize = 16;

/// Listens for TCP. Port 0 takes one from the system.
///
/// # Errors
/// When the address cannot be had.
pub fn tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections of the previous process to time out.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Opens TCP and UDP on the same port.
///
/// # Errors
/// When the address cannot be had for both.
pub fn tcp_and_udp(addr: SocketAddr) -> io::Result<(TcpListener, UdpSocket, SocketAddr)> {
    let tries = if addr.port() == 0 { TRIES } else { 1 };
    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..tries {
        let tcp = tcp(addr)?;
        let bound = tcp.local_addr()?;
        match udp(bound) {
            Ok(udp) => return Ok((tcp, udp, bound)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken = error,
            Err(error) => return Err(error),
        }
    }
    Err(taken)
}

fn udp(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind(&addr.into())?;
    socket.set_nonblocking(true)?;
    // Above the system's limit this needs a privilege; without it we get what we can.
    let sized = force_receive_buffer(&socket, UDP_BUFFER_BYTES)
        .or_else(|_| socket.set_recv_buffer_size(UDP_BUFFER_BYTES))
        .and_then(|()| socket.set_send_buffer_size(UDP_BUFFER_BYTES));
    let got = socket.recv_buffer_size().unwrap_or(0);
    if sized.is_err() || got < UDP_BUFFER_BYTES {
        tracing::info!(
            bytes = got,
            "the UDP receive buffer is small; raise net.core.rmem_max for bursts of new visitors"
        );
    }
    Ok(socket.into())
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "socket2 has no SO_RCVBUFFORCE")]
fn force_receive_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let value = libc::c_int::try_from(bytes).map_err(io::Error::other)?;
    let size = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the kernel reads
    // `size` bytes from a live integer of that size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const value).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn force_receive_buffer(_socket: &Socket, _bytes: usize) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn both_have_the_same_port() {
        let (tcp, udp, addr) = tcp_and_udp(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        assert_eq!(tcp.local_addr().unwrap(), addr);
        assert_eq!(udp.local_addr().unwrap(), addr);
        assert!(tcp_and_udp(addr).is_err());
    }
}
