//! Two nodes that cannot reach each other, while both reach everybody else.

use anyhow::{Result, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::{DevCluster, Fault, Node, Tree, packets_cut, seed};

use super::{ensure_served_everywhere, word};

/// Mends the link however the test ends: the packet filter is the machine's.
struct Cut<'a> {
    cluster: &'a DevCluster,
    fault: Fault,
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.fault.undo(self.cluster) {
            eprintln!("{error:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_and_its_readers_get_by_without_one_link() -> Result<()> {
    let seed = seed::or(11);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let links = [
        (Node::chunkserver(1), Node::chunkserver(2)),
        (Node::shield(1), Node::chunkserver(1)),
        (Node::edge(1), Node::shield(1)),
    ];
    for (number, (one, other)) in (1..).zip(links) {
        let fault = Fault::CutLink(one, other);
        fault.apply(&cluster)?;
        let cut = Cut { cluster: &cluster, fault };
        let site = format!("cut-{number}");
        let tree = Tree::ordinary(seed + number, 60);
        let source = cluster.work().join(&site);
        tree.write(&source)?;
        cluster.atoll(&["deploy", word(&source), "--site", &site, "--create"])?.ok()?;
        ensure_served_everywhere(&cluster, &site, &tree, &[Version::H2]).await?;
        let packets = packets_cut(&cluster, one, other)?;
        ensure!(packets > 0, "nothing was kept back between {one} and {other}");
        drop(cut);
    }
    cluster.wait_healthy()
}
