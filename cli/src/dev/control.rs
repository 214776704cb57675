//! How `atoll dev start|stop|add|rm` in another terminal reach the `atoll dev` that runs: a Unix socket
//! in the data directory, one line of JSON each way.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::layout::Layout;
use crate::report::Failure;

/// Longest line.
const LINE_BYTES_MAX: u64 = 16 << 10;
/// A started process has this long to be ready, with a margin for the answer.
const ANSWER: Duration = Duration::from_secs(90);
/// The request follows the connection at once.
const REQUEST: Duration = Duration::from_secs(5);
/// Requests waiting.
const WAITING: usize = 16;

/// What to do with a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase", tag = "order")]
pub(crate) enum Order {
    /// Start it again on its data and port.
    Start {
        /// Such as `edge-1`.
        name: String,
    },
    /// Stop it.
    Stop {
        /// Such as `edge-1`.
        name: String,
        /// With SIGKILL instead of SIGTERM.
        kill: bool,
    },
    /// Make and start one more chunkserver.
    Add {
        /// Its failure domain; `None` for the usual one of its number.
        zone: Option<String>,
    },
    /// Make and start one more master, and give it a vote.
    AddMaster,
    /// Stop a process and never start it again.
    Forget {
        /// Such as `chunkserver-4`.
        name: String,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Whether it is done.
    pub(crate) ok: bool,
    /// What happened.
    pub(crate) message: String,
}

/// An order, and where its outcome goes.
pub(crate) type Ordered = (Order, oneshot::Sender<Outcome>);

/// Takes orders until the receiver is dropped. The socket is removed and made anew, which is safe
/// under the lock on the data directory.
pub(crate) fn listen(layout: &Layout) -> Result<mpsc::Receiver<Ordered>, Failure> {
    let socket = layout.socket()?;
    // There is one after a kill.
    drop(std::fs::remove_file(&socket.path));
    let listener = UnixListener::bind(&socket.path)
        .map_err(|error| Failure::failed("make the control socket", error))?;
    owner_only(&socket.path)?;
    let (sender, orders) = mpsc::channel(WAITING);
    drop(atoll_net::task::spawn("control", async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let sender = sender.clone();
                        drop(atoll_net::task::spawn("order", serve(stream, sender)));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
            }
        }
    }));
    Ok(orders)
}

fn owner_only(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(Failure::file("protect", path))
}

async fn serve(stream: UnixStream, sender: mpsc::Sender<Ordered>) {
    let mut stream = BufReader::new(stream);
    let outcome = match read_line::<Order>(&mut stream, REQUEST).await {
        Ok(order) => {
            let (answer, answered) = oneshot::channel();
            if sender.send((order, answer)).await.is_err() {
                return;
            }
            answered.await.unwrap_or_else(|_dropped| Outcome {
                ok: false,
                message: "`atoll dev` is stopping".to_owned(),
            })
        }
        Err(message) => Outcome { ok: false, message },
    };
    if let Ok(mut line) = serde_json::to_string(&outcome) {
        line.push('\n');
        // Whoever asked may have gone.
        drop(stream.write_all(line.as_bytes()).await);
    }
}

async fn read_line<T: serde::de::DeserializeOwned>(
    stream: &mut BufReader<UnixStream>,
    bound: Duration,
) -> Result<T, String> {
    let mut line = String::new();
    let mut limited = stream.take(LINE_BYTES_MAX);
    let read = limited.read_line(&mut line);
    match tokio::time::timeout(bound, read).await {
        Ok(Ok(0)) => Err("`atoll dev` stopped before it answered".to_owned()),
        Ok(Ok(_)) => serde_json::from_str(&line).map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", bound.as_secs())),
    }
}

/// Sends an order to the `atoll dev` that runs on this data.
///
/// # Errors
/// When none runs, or the order cannot be carried out.
pub(crate) async fn send(layout: &Layout, order: &Order) -> Result<String, Failure> {
    let not_running = || {
        Failure::Failed(format!(
            "no `atoll dev` runs on {}; start it, or name its directory with --data",
            layout.data().display()
        ))
    };
    if !layout.data().exists() {
        return Err(not_running());
    }
    let socket = layout.socket()?;
    let stream = UnixStream::connect(&socket.path).await.map_err(|_refused| not_running())?;
    let mut stream = BufReader::new(stream);
    let doing = "reach `atoll dev`";
    let mut line = serde_json::to_string(order).map_err(|error| Failure::failed(doing, error))?;
    line.push('\n');
    stream.write_all(line.as_bytes()).await.map_err(|error| Failure::failed(doing, error))?;
    let outcome: Outcome =
        read_line(&mut stream, ANSWER).await.map_err(|error| Failure::failed(doing, error))?;
    if outcome.ok { Ok(outcome.message) } else { Err(Failure::Failed(outcome.message)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn orders_are_answered_and_nonsense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path()).unwrap();
        let order = Order::Stop { name: "edge-1".into(), kill: true };
        let text = send(&layout, &order).await.unwrap_err().to_string();
        assert!(text.contains("no `atoll dev` runs"), "{text}");

        let mut orders = listen(&layout).unwrap();
        let (sent, ()) = tokio::join!(send(&layout, &order), async {
            let (got, answer) = orders.recv().await.unwrap();
            assert_eq!(got, Order::Stop { name: "edge-1".into(), kill: true });
            answer.send(Outcome { ok: true, message: "stopped".into() }).unwrap();
        });
        assert_eq!(sent.unwrap(), "stopped");

        let socket = layout.socket().unwrap();
        let mut stream = BufReader::new(UnixStream::connect(&socket.path).await.unwrap());
        stream.write_all(b"nonsense\n").await.unwrap();
        let outcome: Outcome = read_line(&mut stream, REQUEST).await.unwrap();
        assert!(!outcome.ok);
    }
}
