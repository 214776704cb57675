//! What the file system needs of a cluster.
//!
//! [`ClusterStore`] is the real one; the tests have one in memory.

use std::future::Future;

use atoll_client::{ChunkWriter, ClientError, Cluster, Undecided, Unsure, Verdict};
use atoll_proto::content::Extent;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::namespace::{NamespaceOp, NamespaceQuery, NamespaceReply};
use atoll_proto::publish::{Alias, Deploy, Site};
use atoll_proto::receipt::Receipt;
use atoll_proto::{ChunkId, Content, SiteName, limits};
use bytes::Bytes;

/// Deploys asked for at a time.
const DEPLOYS_PER_REQUEST: u32 = 1000;
/// Deploys of one site that are shown at most.
const DEPLOYS_MAX: usize = 10_000;

/// A cluster: names, chunks, sites.
pub trait Store: Send + Sync + 'static {
    /// Asks about the namespace.
    fn query(
        &self,
        query: NamespaceQuery,
    ) -> impl Future<Output = Result<NamespaceReply, ClientError>> + Send;

    /// Changes the namespace, exactly once.
    fn change(
        &self,
        op: NamespaceOp,
    ) -> impl Future<Output = Result<NamespaceReply, ClientError>> + Send;

    /// Changes the namespace by something that must not be done once more because no answer came.
    fn change_once(
        &self,
        op: NamespaceOp,
    ) -> impl Future<Output = Result<NamespaceReply, Unsure>> + Send;

    /// What became of a change. If it was not made so far it never will be.
    fn settle(
        &self,
        undecided: &Undecided,
    ) -> impl Future<Output = Result<Verdict, ClientError>> + Send;

    /// A whole chunk, verified.
    fn read_chunk(&self, id: ChunkId) -> impl Future<Output = Result<Bytes, ClientError>> + Send;

    /// Stores a chunk; returns when it is durable.
    fn put_chunk(
        &self,
        bytes: Bytes,
    ) -> impl Future<Output = Result<(ChunkId, Vec<Receipt>), ClientError>> + Send;

    /// All extents of a content.
    fn extents(
        &self,
        content: &Content,
    ) -> impl Future<Output = Result<Vec<Extent>, ClientError>> + Send;

    /// The content with these extents, as far as they are new covered by the receipts.
    fn seal(
        &self,
        extents: Vec<Extent>,
        receipts: &[Receipt],
    ) -> impl Future<Output = Result<Content, ClientError>> + Send;

    /// All sites with their aliases.
    fn sites(&self) -> impl Future<Output = Result<Vec<(Site, Vec<Alias>)>, ClientError>> + Send;

    /// The deploys of a site, latest first.
    fn deploys(
        &self,
        site: SiteName,
    ) -> impl Future<Output = Result<Vec<Deploy>, ClientError>> + Send;
}

/// A cluster reached through the client library.
#[derive(Clone)]
pub struct ClusterStore {
    cluster: Cluster,
    writer: ChunkWriter,
}

impl ClusterStore {
    /// All files of a mount share one writer, so that their small chunks travel together.
    pub fn new(cluster: Cluster) -> ClusterStore {
        let writer = cluster.writer();
        ClusterStore { cluster, writer }
    }
}

fn unexpected(question: &str) -> ClientError {
    let what = format!("the master answered {question} with the wrong kind of message");
    ClientError::Malformed { what }
}

impl Store for ClusterStore {
    async fn query(&self, query: NamespaceQuery) -> Result<NamespaceReply, ClientError> {
        self.cluster.query(query).await
    }

    async fn change(&self, op: NamespaceOp) -> Result<NamespaceReply, ClientError> {
        self.cluster.namespace(op).await
    }

    async fn change_once(&self, op: NamespaceOp) -> Result<NamespaceReply, Unsure> {
        self.cluster.namespace_once(op).await
    }

    async fn settle(&self, undecided: &Undecided) -> Result<Verdict, ClientError> {
        self.cluster.settle(undecided).await
    }

    async fn read_chunk(&self, id: ChunkId) -> Result<Bytes, ClientError> {
        self.cluster.read_chunk(id).await
    }

    async fn put_chunk(&self, bytes: Bytes) -> Result<(ChunkId, Vec<Receipt>), ClientError> {
        let ticket = self.writer.put(bytes).await?;
        Ok((ticket.id(), ticket.durable().await?))
    }

    async fn extents(&self, content: &Content) -> Result<Vec<Extent>, ClientError> {
        self.cluster.extents(content).await
    }

    async fn seal(
        &self,
        extents: Vec<Extent>,
        receipts: &[Receipt],
    ) -> Result<Content, ClientError> {
        self.cluster.seal_content(extents, receipts).await
    }

    async fn sites(&self) -> Result<Vec<(Site, Vec<Alias>)>, ClientError> {
        match self.cluster.master(&MasterRequest::Sites, limits::METADATA_DEADLINE).await? {
            MasterResponse::Sites(sites) => Ok(sites),
            _ => Err(unexpected("the list of sites")),
        }
    }

    async fn deploys(&self, site: SiteName) -> Result<Vec<Deploy>, ClientError> {
        let mut all: Vec<Deploy> = Vec::new();
        loop {
            let request = MasterRequest::Deploys {
                site: site.clone(),
                before: all.last().map(|deploy| deploy.seq),
                limit: DEPLOYS_PER_REQUEST,
            };
            match self.cluster.master(&request, limits::METADATA_DEADLINE).await? {
                MasterResponse::Deploys(some) => {
                    let more = some.len() == DEPLOYS_PER_REQUEST as usize;
                    all.extend(some);
                    if !more || all.len() >= DEPLOYS_MAX {
                        return Ok(all);
                    }
                }
                _ => return Err(unexpected("the list of deploys")),
            }
        }
    }
}
