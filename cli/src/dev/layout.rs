//! Where things are under `--data`.
//!
//! ```text
//! dev.json            what is remembered from one start to the next
//! dev.lock  dev.sock  one `atoll dev` at a time; where `dev start|stop|add|rm` reach it
//! client.toml         what every other verb needs (with the token)
//! ca/                 the cluster's authority, for links between processes
//! web-ca/             the authority browsers may trust, for the edges' HTTPS
//! web/                the edges' certificate
//! identity/<name>/    certificate and key of each process
//! config/<name>.toml  its configuration, written anew at each start
//! nodes/<name>/       its data
//! run/<name>.json     where it listens, once it is ready
//! run/<name>.pid      its process
//! logs/<name>.log     what it says
//! ```

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::plan::{NodeName, RECORD_VERSION, Record};
use crate::node_files::write_whole;
use crate::report::Failure;

/// The paths of one local cluster.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    data: PathBuf,
}

/// Holds the lock on a data directory.
#[derive(Debug)]
pub(crate) struct DataLock {
    _file: Flock<File>,
}

/// A directory held open, and a short path to a socket in it: the path of a Unix socket has at
/// most 107 bytes.
pub(crate) struct SocketPath {
    _directory: File,
    /// Valid while this value lives.
    pub(crate) path: PathBuf,
}

impl Layout {
    /// Of this data directory, which need not exist yet.
    pub(crate) fn new(data: &Path) -> Result<Self, Failure> {
        let data = std::path::absolute(data).map_err(Failure::file("find", data))?;
        Ok(Self { data })
    }

    /// Makes the directories.
    pub(crate) fn create(&self) -> Result<(), Failure> {
        for name in ["identity", "config", "nodes", "run", "logs", "web"] {
            let path = self.data.join(name);
            fs::create_dir_all(&path).map_err(Failure::file("make", &path))?;
        }
        Ok(())
    }

    /// Makes sure that no other `atoll dev` uses the directory.
    pub(crate) fn lock(&self) -> Result<DataLock, Failure> {
        let path = self.data.join("dev.lock");
        let file = File::create(&path).map_err(Failure::file("open", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(DataLock { _file: file }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Failure::Failed(format!(
                "another `atoll dev` runs on {}; stop it, or use another --data",
                self.data.display()
            ))),
            Err((_, error)) => Err(Failure::file("lock", &path)(error.into())),
        }
    }

    /// What was remembered; `None` at the first start.
    pub(crate) fn record(&self) -> Result<Option<Record>, Failure> {
        let path = self.record_path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::file("read", &path)(error)),
        };
        let wrong = |reason: String| Failure::Failed(format!("{}: {reason}", path.display()));
        let record: Record =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if record.version != RECORD_VERSION {
            return Err(wrong(format!("written by another version ({})", record.version)));
        }
        Ok(Some(record))
    }

    /// Remembers.
    pub(crate) fn save_record(&self, record: &Record) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(record)
            .map_err(|error| Failure::failed("write dev.json", error))?;
        write_whole(&self.record_path(), &text)
    }

    fn record_path(&self) -> PathBuf {
        self.data.join("dev.json")
    }

    /// The directory itself.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// The client configuration.
    pub(crate) fn client_config(&self) -> PathBuf {
        self.data.join("client.toml")
    }

    /// The authority of links between processes.
    pub(crate) fn ca(&self) -> PathBuf {
        self.data.join("ca")
    }

    /// The authority of the edges' HTTPS.
    pub(crate) fn web_ca(&self) -> PathBuf {
        self.data.join("web-ca")
    }

    /// The edges' certificate or key.
    pub(crate) fn web(&self, file: &str) -> PathBuf {
        self.data.join("web").join(file)
    }

    /// Certificate and key of a process.
    pub(crate) fn identity(&self, name: &str) -> PathBuf {
        self.data.join("identity").join(name)
    }

    /// Configuration of a process.
    pub(crate) fn config(&self, name: NodeName) -> PathBuf {
        self.data.join("config").join(format!("{name}.toml"))
    }

    /// Data of a process.
    pub(crate) fn node(&self, name: NodeName) -> PathBuf {
        self.data.join("nodes").join(name.to_string())
    }

    /// What a process says once it is ready.
    pub(crate) fn ready(&self, name: &str) -> PathBuf {
        self.data.join("run").join(format!("{name}.json"))
    }

    /// The process id of a process.
    pub(crate) fn pid(&self, name: &str) -> PathBuf {
        self.data.join("run").join(format!("{name}.pid"))
    }

    /// What a process logs.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.data.join("logs").join(format!("{name}.log"))
    }

    /// Where `dev start|stop|add|rm` reach a running `atoll dev`.
    pub(crate) fn socket(&self) -> Result<SocketPath, Failure> {
        let directory = File::open(&self.data).map_err(Failure::file("open", &self.data))?;
        let fd = directory.as_raw_fd();
        let path = PathBuf::from(format!("/proc/self/fd/{fd}/dev.sock"));
        Ok(SocketPath { _directory: directory, path })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeMap;

    use super::*;
    use crate::dev::plan::Shape;

    #[test]
    fn one_at_a_time_and_what_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("deep/data")).unwrap();
        layout.create().unwrap();
        let held = layout.lock().unwrap();
        assert!(layout.lock().unwrap_err().to_string().contains("another `atoll dev`"));
        drop(held);
        drop(layout.lock().unwrap());

        assert!(layout.record().unwrap().is_none());
        let record = Record {
            version: RECORD_VERSION,
            cluster: "00".repeat(16),
            shape: Shape::default(),
            ports: BTreeMap::new(),
            added: BTreeMap::new(),
            forgotten: std::collections::BTreeSet::new(),
        };
        layout.save_record(&record).unwrap();
        assert_eq!(layout.record().unwrap().unwrap(), record);
        fs::write(layout.data().join("dev.json"), "{}").unwrap();
        assert!(layout.record().unwrap_err().to_string().contains("dev.json"));
    }

    #[test]
    fn a_socket_works_however_long_the_path_is() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("x".repeat(200))).unwrap();
        layout.create().unwrap();
        let socket = layout.socket().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&socket.path).unwrap();
        assert!(layout.data().join("dev.sock").exists());
        let other = layout.socket().unwrap();
        std::os::unix::net::UnixStream::connect(&other.path).unwrap();
        drop(listener);
    }
}
