//! The cluster within the test's process: everything through the client library, and visitors.

use anyhow::{Result, ensure};
use atoll_client::upload_file;
use atoll_proto::namespace::{Caller, NamespaceQuery, NamespaceReply};
use atoll_testbed::http::Version;
use atoll_testbed::{InProcess, Tree, seed};

use super::ensure_served;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deployed_and_uploaded_comes_back_within_one_process() -> Result<()> {
    let seed = seed::or(31);
    let builder = InProcess::builder().masters(1).chunkservers(3).edges(2).shields(1).seed(seed);
    let cluster = builder.start().await?;
    let client = cluster.client().await?;
    let tree = Tree::ordinary(seed, 40);
    let report = cluster.deploy(&client, &tree, "inside").await?;
    ensure!(report.edges == 3 && report.down.is_empty(), "{report:?}");
    for (name, addr) in cluster.edges() {
        for version in Version::ALL {
            let mut visitor = cluster.visit(version, addr, "inside").await?;
            ensure_served(&mut visitor, &tree, &format!("{name} over {version:?}")).await?;
        }
    }
    upload_and_read_back(&cluster, &client, "/uploaded", seed).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunkserver_stops_and_starts_again_within_one_process() -> Result<()> {
    let seed = seed::or(32);
    let cluster = InProcess::builder().edges(1).shields(0).seed(seed).start().await?;
    let client = cluster.client().await?;
    let trees = [Tree::ordinary(seed, 20), Tree::ordinary(seed + 1, 20)];
    cluster.deploy(&client, &trees[0], "before").await?;
    cluster.stop_chunkserver(2).await?;
    ensure!(cluster.stop_chunkserver(2).await.is_err(), "it does not run");
    cluster.deploy(&client, &trees[1], "meanwhile").await?;
    upload_and_read_back(&cluster, &client, "/meanwhile", seed).await?;
    cluster.start_chunkserver(2).await?;
    ensure!(cluster.start_chunkserver(2).await.is_err(), "it runs");
    cluster.until_serving().await?;
    // Only the one that was away and one other, so that what it kept is read.
    cluster.stop_chunkserver(1).await?;
    upload_and_read_back(&cluster, &client, "/after", seed).await?;
    let (name, addr) = cluster.edges().remove(0);
    for (site, tree) in [("before", &trees[0]), ("meanwhile", &trees[1])] {
        let mut visitor = cluster.visit(Version::H2, addr, site).await?;
        ensure_served(&mut visitor, tree, &format!("{site} from {name}")).await?;
    }
    cluster.finish().await
}

/// Files of several chunks and of one, through the namespace and back.
async fn upload_and_read_back(
    cluster: &InProcess,
    client: &atoll_client::Cluster,
    folder: &str,
    seed: u64,
) -> Result<()> {
    let writer = client.writer();
    let mut rng = seed::rng(seed);
    for size in [0, 1, 70_000, (1 << 20) + 1] {
        let content = atoll_testbed::tree::random(&mut rng, size);
        let source = cluster.work().join("upload.bin");
        std::fs::write(&source, &content)?;
        let path = format!("{folder}/{size}.bin");
        let caller = Caller { uid: 0, gid: 0 };
        let to = path.as_str().into();
        let upload = upload_file(client, &writer, &source, to, 0o644, caller, 1, false, &|_| {});
        Box::pin(upload).await?;
        let query = NamespaceQuery::Resolve { path: path.as_str().into() };
        let NamespaceReply::Attr { attr, .. } = client.query(query).await? else {
            anyhow::bail!("no attributes of {path}");
        };
        let query = NamespaceQuery::Open { inode: attr.inode };
        let NamespaceReply::File { content: found, .. } = client.query(query).await? else {
            anyhow::bail!("no content of {path}");
        };
        let extents = client.extents(&found).await?;
        let read = client.read_at(&extents, 0, size + 1).await?;
        ensure!(read == content, "{path}: {} bytes came back, not {size}", read.len());
    }
    Ok(())
}
