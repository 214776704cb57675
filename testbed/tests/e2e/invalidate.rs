//! `invalidate` drops the copies of what it names and of nothing else: by tag under whatever URL
//! that is given, by path what the path shows.

use anyhow::{Result, ensure};
use atoll_testbed::http::{Answer, Connection, Version};
use atoll_testbed::{DevCluster, Tree, seed};

use super::number;

const SITE: &str = "tagged";
/// Paths that show one file each.
const PATHS: [&str; 4] = ["/code.js", "/story", "/other.js", "/missing"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_drops_what_it_names_and_nothing_else() -> Result<()> {
    let cluster = DevCluster::builder().seed(seed::or(21)).start()?;
    let mut tree = Tree::default();
    tree.put("code.js", "code");
    tree.put("articles/story.html", "story");
    tree.put("other.js", "other");
    tree.put("404.html", "none");
    tree.put("_redirects", "/story /articles/story 200\n");
    tree.put("_headers", "/code.js\n  Cache-Tag: code, all\n/story\n  Surrogate-Key: news all\n");
    let source = cluster.work().join(SITE);
    tree.write(&source)?;
    cluster.deploy(&source, SITE)?;
    for (options, dropped) in [
        (["--tag", "code"], &["/code.js"][..]),
        (["--tag", "NEWS"], &["/story"]),
        (["--tag", "all"], &["/code.js", "/story"]),
        (["--tag", "nothing"], &[]),
        (["--path", "/story"], &["/story"]),
        (["--path", "/articles/story.html"], &["/story"]),
        (["--prefix", "/articles/"], &["/story"]),
        (["--path", "/no/such/page"], &["/missing"]),
    ] {
        for (_, addr) in cluster.edges() {
            let mut visitor = cluster.visit(Version::H2, addr, SITE).await?;
            for path in PATHS {
                visitor.get(path).await?;
                let answer = visitor.get(path).await?;
                ensure!(is_hit(&answer), "{path} is not cached: {answer:?}");
                ensure!(answer.header("cache-tag").is_empty(), "{answer:?}");
            }
        }
        let arguments = [&["invalidate", SITE][..], &options].concat();
        let done = cluster.json(&arguments)?;
        ensure!(number(&done, "seq") > 0, "{done}");
        for (edge, addr) in cluster.edges() {
            let mut visitor = cluster.visit(Version::H1, addr, SITE).await?;
            check(&mut visitor, dropped, &format!("{options:?} at {edge}")).await?;
        }
    }
    cluster.finish()
}

fn is_hit(answer: &Answer) -> bool {
    answer.header("cache-status").contains("; hit")
}

async fn check(visitor: &mut Connection, dropped: &[&str], what: &str) -> Result<()> {
    for path in PATHS {
        let answer = visitor.get(path).await?;
        let expected = !dropped.contains(&path);
        ensure!(is_hit(&answer) == expected, "{what}: {path}: {answer:?}");
    }
    Ok(())
}
