//! The file system without a mount: upload, ls, stat, cat, mkdir, mv, cp, rm.

use anyhow::{Result, ensure};
use atoll_testbed::{DevCluster, Tree, seed};

use super::word;

#[test]
fn files_go_up_move_and_come_back_as_they_were() -> Result<()> {
    let seed = seed::or(9);
    let cluster = DevCluster::builder().edges(1).shields(1).seed(seed).start()?;
    let tree = Tree::generate(seed, 45);
    let source = cluster.work().join("tree");
    tree.write(&source)?;
    cluster.atoll(&["mkdir", "/a"])?.ok()?;
    cluster.atoll(&["upload", word(&source), "/a/tree"])?.ok()?;
    for (path, content) in &tree.files {
        let Ok(path) = std::str::from_utf8(path) else {
            continue;
        };
        let found = cluster.atoll(&["cat", &format!("/a/tree/{path}")])?.ok()?;
        ensure!(found.stdout == *content, "{path:?}");
    }
    let listed = cluster.atoll(&["ls", "/a/tree"])?.ok()?.text();
    ensure!(listed.contains("index.html") && listed.contains("sizes"), "{listed}");
    let stat = cluster.atoll(&["stat", "/a/tree/sizes/chunk-plus-1.bin"])?.ok()?.text();
    ensure!(stat.contains("1048577"), "{stat}");

    cluster.atoll(&["mv", "/a/tree", "/moved"])?.ok()?;
    cluster.atoll(&["cat", "/a/tree/index.html"])?.expect_code(1)?;
    let found = cluster.atoll(&["cat", "/moved/index.html"])?.ok()?;
    ensure!(Some(&found.stdout[..]) == tree.content("index.html").map(|c| &c[..]), "{found}");
    cluster.atoll(&["cp", "/moved/sizes/two-chunks.bin", "/copy.bin"])?.ok()?;
    let found = cluster.atoll(&["cat", "/copy.bin"])?.ok()?;
    let expected = tree.content("sizes/two-chunks.bin").unwrap();
    ensure!(found.stdout == *expected, "the copy differs");

    cluster.atoll(&["rm", "/moved"])?.expect_code(1)?;
    cluster.atoll(&["rm", "-r", "/moved"])?.ok()?;
    cluster.atoll(&["ls", "/moved"])?.expect_code(1)?;
    let found = cluster.atoll(&["cat", "/copy.bin"])?.ok()?;
    ensure!(found.stdout == *expected, "the copy went with the original");

    // Mounts show the deploys of sites there.
    for verb in [&["mkdir", "/.sites"][..], &["mv", "/copy.bin", "/.sites"]] {
        let refused = cluster.atoll(verb)?;
        ensure!(refused.code != Some(0) && refused.stderr.contains("/.sites is"), "{refused}");
    }
    let listed = cluster.atoll(&["ls", "/"])?.ok()?.text();
    ensure!(listed.contains("copy.bin") && !listed.contains(".sites"), "{listed}");
    cluster.finish()
}
