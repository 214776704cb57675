//! Streams: what was read waits in order, and is not read when too much waits.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::line::{Line, QUEUE_BYTES_MAX};
use super::{Direction, Link};

/// Read at once.
const READ_BYTES: usize = 64 << 10;
/// Reads on their way: with [`READ_BYTES`] each they are within the bound of a queue.
const READS_MAX: usize = QUEUE_BYTES_MAX / READ_BYTES;
/// Most connections at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 1024;

/// Passes connections on until it is aborted.
pub(super) async fn run(listener: TcpListener, target: SocketAddr, link: Arc<Link>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            link.count(false);
            continue;
        }
        connections.spawn(connection(stream, target, link.clone()));
    }
}

async fn connection(outside: TcpStream, target: SocketAddr, link: Arc<Link>) {
    // Dropping the stream tells whoever connected that nobody is there.
    let Ok(inside) = TcpStream::connect(target).await else { return };
    if outside.set_nodelay(true).and(inside.set_nodelay(true)).is_err() {
        return;
    }
    let (there, back) = link.lines();
    let ((from, to_visitor), (answers, to_target)) = (outside.into_split(), inside.into_split());
    let there = pass(from, to_target, there, Direction::There, &link);
    let back = pass(answers, to_visitor, back, Direction::Back, &link);
    // An end of one direction is passed on as such; an error ends both.
    drop(tokio::try_join!(there, back));
}

async fn pass(
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    line: Line,
    direction: Direction,
    link: &Link,
) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel(READS_MAX);
    let reading = read(from, line, direction, link, sender);
    tokio::try_join!(reading, write(to, direction, link, receiver)).map(drop)
}

async fn read(
    mut from: OwnedReadHalf,
    mut line: Line,
    direction: Direction,
    link: &Link,
    sender: mpsc::Sender<(Instant, Bytes)>,
) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let way = *link.way(direction).borrow();
        let at = line.stream(&way, length, Instant::now());
        if sender.send((at, Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
            return Ok(());
        }
    }
}

async fn write(
    mut to: OwnedWriteHalf,
    direction: Direction,
    link: &Link,
    mut receiver: mpsc::Receiver<(Instant, Bytes)>,
) -> io::Result<()> {
    let mut way = link.way(direction).subscribe();
    while let Some((at, bytes)) = receiver.recv().await {
        sleep_until(at).await;
        // Nothing is lost on a link that is cut: it waits until it passes again.
        if way.wait_for(|way| !way.cut).await.is_err() {
            return Ok(());
        }
        to.write_all(&bytes).await?;
        link.count(true);
    }
    if way.wait_for(|way| !way.cut).await.is_err() {
        return Ok(());
    }
    to.shutdown().await
}
