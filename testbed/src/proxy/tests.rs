//! The proxy between two sockets of this machine: what each way does to what goes through.

#![allow(clippy::unwrap_used, reason = "tests")]
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;

/// A deadline that only a hang reaches.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for what is not lost to arrive, nearly always.
const MOMENT: Duration = Duration::from_millis(150);

/// Sends every datagram back to where it came from.
async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            socket.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    addr
}

async fn dial(proxy: &Proxy) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(proxy.addr()).await.unwrap();
    socket
}

/// Sends, again and again where datagrams may be lost, until this comes back.
async fn heard(socket: &UdpSocket, text: &[u8]) -> bool {
    socket.send(text).await.unwrap();
    let mut buffer = [0; 2048];
    let wanted = async {
        loop {
            let length = socket.recv(&mut buffer).await.unwrap();
            if &buffer[..length] == text {
                return;
            }
        }
    };
    timeout(PATIENCE, wanted).await.is_ok()
}

#[tokio::test]
async fn datagrams_of_several_senders_come_back_to_each() {
    let proxy = Proxy::udp(echo().await, 1).await.unwrap();
    let (one, other) = (dial(&proxy).await, dial(&proxy).await);
    assert!(heard(&one, b"one").await && heard(&other, b"other").await);
    assert!(heard(&one, b"again").await);
    assert_eq!(proxy.passed(), Passed { passed: 6, lost: 0 });
}

#[tokio::test]
async fn a_delay_is_kept_in_both_directions() {
    let proxy = Proxy::udp(echo().await, 1).await.unwrap();
    let socket = dial(&proxy).await;
    let delay = Duration::from_millis(60);
    proxy.set_both(Way::delayed(delay));
    let began = Instant::now();
    assert!(heard(&socket, b"slow").await);
    assert!(began.elapsed() >= delay * 2);
}

#[tokio::test]
async fn a_cut_in_either_direction_lets_nothing_pass_and_a_mended_link_works() {
    for direction in [Direction::There, Direction::Back] {
        let proxy = Proxy::udp(echo().await, 1).await.unwrap();
        let socket = dial(&proxy).await;
        assert!(heard(&socket, b"before").await);
        proxy.set(direction, Way::cut());
        socket.send(b"lost").await.unwrap();
        let mut buffer = [0; 64];
        assert!(timeout(MOMENT, socket.recv(&mut buffer)).await.is_err(), "{direction:?}");
        assert_eq!(proxy.passed().lost, 1);
        proxy.set(direction, Way::default());
        assert!(heard(&socket, b"after").await);
    }
}

#[tokio::test]
async fn a_duplicate_arrives_twice() {
    let proxy = Proxy::udp(echo().await, 1).await.unwrap();
    proxy.set(Direction::Back, Way { duplicate: 1.0, ..Way::default() });
    let socket = dial(&proxy).await;
    socket.send(b"twice").await.unwrap();
    let mut buffer = [0; 64];
    for _ in 0..2 {
        let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..length], b"twice");
    }
}

#[tokio::test]
async fn a_stream_passes_whole_and_a_cut_one_waits() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
    });
    let proxy = Proxy::tcp(target, 1).await.unwrap();
    proxy.set_both(Way { jitter: Duration::from_millis(3), ..Way::default() });
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    let sent: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
    stream.write_all(&sent).await.unwrap();
    proxy.set(Direction::Back, Way::cut());
    stream.shutdown().await.unwrap();
    let mut first = [0; 1];
    assert!(timeout(MOMENT, stream.read(&mut first)).await.is_err());
    proxy.set(Direction::Back, Way::default());
    let mut received = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut received)).await.unwrap().unwrap();
    assert!(received == sent, "{} bytes", received.len());
    server.await.unwrap();
}

#[tokio::test]
async fn nobody_behind_a_proxy_is_told_as_a_closed_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    drop(listener);
    let proxy = Proxy::tcp(target, 1).await.unwrap();
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    let mut buffer = [0; 1];
    let read = timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
}
