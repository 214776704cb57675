//! fsck says that all is well when it is, and what is not when it is not.

use std::time::Duration;

use anyhow::{Result, ensure};
use atoll_testbed::{DevCluster, Fault, Node, Tree, seed, wait};

use super::{number, word};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_cluster_is_clean_and_a_server_that_is_down_is_named() -> Result<()> {
    let seed = seed::or(23);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let tree = Tree::ordinary(seed, 40);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    cluster.deploy(&source, "blog")?;
    cluster.atoll(&["upload", word(&source), "/files"])?.ok()?;
    let clean = wait::until("a clean cluster", LIMIT, || Ok(Some(cluster.json(&["fsck"])?)))?;
    ensure!(clean["clean"] == true && number(&clean, "deploys") == 1, "{clean}");
    ensure!(number(&clean, "files") == tree.files.len() as u64, "{clean}");
    ensure!(number(&clean, "references") > number(&clean, "files"), "{clean}");

    let repaired = cluster.json(&["fsck", "--repair"])?;
    ensure!(repaired["clean"] == true, "{repaired}");
    let recount = &repaired["recount"];
    ensure!(number(recount, "raised") + number(recount, "created") == 0, "{repaired}");
    ensure!(number(recount, "lowered") == 0, "{repaired}");
    let scrubbed = cluster.json(&["scrub", "--wait", "--timeout", "60"])?;
    ensure!(scrubbed["complete"] == true && number(&scrubbed, "corrupt_found") == 0, "{scrubbed}");

    let fault = Fault::Kill(Node::chunkserver(2));
    fault.apply(&cluster)?;
    wait::until("fsck to name the server", LIMIT, || {
        let outcome = cluster.atoll(&["fsck"])?.expect_code(1)?;
        Ok(outcome.text().contains("chunkserver-2 is down").then_some(()))
    })?;
    fault.undo(&cluster)?;
    cluster.wait_healthy()?;
    wait::until("a clean cluster", LIMIT, || Ok(Some(cluster.json(&["fsck"])?)))?;
    cluster.finish()
}
