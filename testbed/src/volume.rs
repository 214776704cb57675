//! The cluster's file system through the client library, in this process: whole files by path.
//! For volume, where a process per operation would cost more than the operation.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use atoll_client::{ClientConfig, ClientError, Cluster};
use atoll_proto::content::Extent;
use atoll_proto::namespace::{Caller, FileKind, NamespaceOp, NamespaceQuery, NamespaceReply};
use atoll_proto::receipt::Receipt;
use atoll_proto::{ByteName, Code};
use bytes::Bytes;

use crate::cluster::DevCluster;

/// Who everything belongs to.
const CALLER: Caller = Caller { uid: 0, gid: 0 };
/// Entries of a directory asked for at a time.
const LIST_ENTRIES: u32 = 1000;
/// For one whole operation.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A connection.
#[derive(Clone)]
pub struct Volume {
    client: Cluster,
}

impl Volume {
    /// Connects to a running cluster.
    ///
    /// # Errors
    /// When no master answers.
    pub async fn connect(cluster: &DevCluster) -> Result<Self> {
        let config = ClientConfig::load(&cluster.ready().config)?;
        Ok(Self { client: Box::pin(Cluster::connect(&config, "testbed")).await? })
    }

    /// The client library itself.
    pub fn client(&self) -> &Cluster {
        &self.client
    }

    /// Makes a directory and its parents.
    ///
    /// # Errors
    /// Of the cluster.
    pub async fn make_dirs(&self, path: &str) -> Result<()> {
        let op = NamespaceOp::MakeDirs { path: name(path), mode: 0o755, caller: CALLER };
        in_time(path, self.client.namespace(op)).await.map(drop)
    }

    /// Stores a whole file; when it returns, it is durable.
    ///
    /// # Errors
    /// When that is not known.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        tokio::time::timeout(TIMEOUT, Box::pin(self.put_now(path, bytes)))
            .await
            .with_context(|| format!("put {path}: not within {TIMEOUT:?}"))?
            .with_context(|| format!("put {path}"))
    }

    /// Stores a file whose chunks are these parts, however small.
    ///
    /// # Errors
    /// When it is not known to be durable.
    pub async fn put_parts(&self, path: &str, parts: Vec<Bytes>) -> Result<()> {
        tokio::time::timeout(TIMEOUT, Box::pin(self.put_chunks(path, parts)))
            .await
            .with_context(|| format!("put {path}: not within {TIMEOUT:?}"))?
            .with_context(|| format!("put {path}"))
    }

    async fn put_now(&self, path: &str, bytes: Bytes) -> Result<()> {
        let chunk_bytes = usize::try_from(self.client.view().await?.chunk_bytes)?;
        let starts = (0..bytes.len()).step_by(chunk_bytes);
        let parts = starts.map(|at| bytes.slice(at..bytes.len().min(at + chunk_bytes)));
        self.put_chunks(path, parts.collect()).await
    }

    async fn put_chunks(&self, path: &str, parts: Vec<Bytes>) -> Result<()> {
        let writer = self.client.writer();
        let mut extents = Vec::new();
        let mut tickets = Vec::new();
        for part in parts {
            let len = u32::try_from(part.len())?;
            let ticket = writer.put(part).await?;
            extents.push(Extent { id: Some(ticket.id()), len });
            tickets.push(ticket);
        }
        let mut receipts = Vec::new();
        for ticket in tickets {
            receipts.extend(ticket.durable().await?);
        }
        // Small chunks travel together and share a receipt.
        let mut seen = HashSet::new();
        receipts.retain(|receipt: &Receipt| seen.insert(receipt.mac));
        let content = self.client.seal_content(extents, &receipts).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let op = NamespaceOp::PutFile {
            path: name(path),
            mode: 0o644,
            caller: CALLER,
            content,
            mtime_ns: Some(i64::try_from(now.as_nanos())?),
            receipts,
        };
        self.client.namespace(op).await?;
        Ok(())
    }

    /// A file, opened: its content as of now, read piece by piece.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub async fn open(&self, path: &str) -> Result<OpenFile> {
        let query = NamespaceQuery::Resolve { path: name(path) };
        let NamespaceReply::Attr { attr, .. } = in_time(path, self.client.query(query)).await?
        else {
            bail!("{path}: an answer of another kind");
        };
        let query = NamespaceQuery::Open { inode: attr.inode };
        let NamespaceReply::File { content, .. } = in_time(path, self.client.query(query)).await?
        else {
            bail!("{path}: an answer of another kind");
        };
        let extents = in_time(path, self.client.extents(&content)).await?;
        Ok(OpenFile { client: self.client.clone(), path: path.to_owned(), extents })
    }

    /// The bytes of a file; `None` when there is none of that name.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn get(&self, path: &str) -> Result<Option<Bytes>> {
        tokio::time::timeout(TIMEOUT, Box::pin(self.get_now(path)))
            .await
            .with_context(|| format!("get {path}: not within {TIMEOUT:?}"))?
            .with_context(|| format!("get {path}"))
    }

    async fn get_now(&self, path: &str) -> Result<Option<Bytes>> {
        let query = NamespaceQuery::Resolve { path: name(path) };
        let Some(NamespaceReply::Attr { attr, .. }) = found(self.client.query(query).await)? else {
            return Ok(None);
        };
        let query = NamespaceQuery::Open { inode: attr.inode };
        match found(self.client.query(query).await)? {
            Some(NamespaceReply::File { attr, content }) => {
                let extents = self.client.extents(&content).await?;
                let bytes = self.client.read_at(&extents, 0, usize::try_from(attr.size)?).await?;
                ensure!(bytes.len() as u64 == attr.size, "{} of {} B", bytes.len(), attr.size);
                Ok(Some(bytes))
            }
            // Removed between the two questions.
            None => Ok(None),
            Some(other) => bail!("an answer of another kind: {other:?}"),
        }
    }

    /// Removes a file; one that is not there is as good.
    ///
    /// # Errors
    /// When it is not known whether it is gone.
    pub async fn remove(&self, path: &str) -> Result<()> {
        let (parent, leaf) = path.rsplit_once('/').context("an absolute path")?;
        let parent = if parent.is_empty() { "/" } else { parent };
        let query = NamespaceQuery::Resolve { path: name(parent) };
        let asked = in_time(path, async { found(self.client.query(query).await) }).await?;
        let Some(NamespaceReply::Attr { attr, .. }) = asked else {
            return Ok(());
        };
        let op = NamespaceOp::Unlink { parent: attr.inode, name: name(leaf) };
        in_time(path, async { found(self.client.namespace(op).await) }).await.map(drop)
    }

    /// Names of the files in a directory; none when it is not there.
    ///
    /// # Errors
    /// When they cannot be told.
    pub async fn list(&self, path: &str) -> Result<Vec<String>> {
        let query = NamespaceQuery::Resolve { path: name(path) };
        let asked = in_time(path, async { found(self.client.query(query).await) }).await?;
        let Some(NamespaceReply::Attr { attr, .. }) = asked else {
            return Ok(Vec::new());
        };
        let mut names = Vec::new();
        let mut after = None;
        loop {
            let query = NamespaceQuery::ReadDir { inode: attr.inode, after, limit: LIST_ENTRIES };
            let reply = in_time(path, self.client.query(query)).await?;
            let NamespaceReply::Entries { entries, end, .. } = reply else {
                bail!("list {path}: an answer of another kind");
            };
            after = entries.last().map(|entry| entry.name.clone());
            let files = entries.iter().filter(|entry| entry.attr.kind == FileKind::File);
            names.extend(files.map(|e| String::from_utf8_lossy(e.name.as_bytes()).into_owned()));
            if end || after.is_none() {
                return Ok(names);
            }
        }
    }
}

/// A file that was opened.
pub struct OpenFile {
    client: Cluster,
    path: String,
    extents: Vec<Extent>,
}

impl OpenFile {
    /// So many bytes from there, fewer at the end.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn read_at(&self, offset: u64, bytes: usize) -> Result<Bytes> {
        in_time(&self.path, self.client.read_at(&self.extents, offset, bytes)).await
    }
}

fn name(text: &str) -> ByteName {
    ByteName(text.as_bytes().to_vec())
}

/// `None` for what is not there.
fn found<T>(result: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.code() == Some(Code::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn in_time<T>(path: &str, doing: impl Future<Output = Result<T, ClientError>>) -> Result<T> {
    tokio::time::timeout(TIMEOUT, Box::pin(doing))
        .await
        .with_context(|| format!("{path}: not within {TIMEOUT:?}"))?
        .with_context(|| path.to_owned())
}
