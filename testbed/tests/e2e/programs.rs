//! Real programs on the mount, also while a chunkserver is killed and comes back: databases, and
//! the copying that `mount.rs` does in peace.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use atoll_testbed::{DevCluster, Node, Outcome, Tree, process, seed};

fn python(script: &str, dir: &Path, argument: &str) -> Result<Outcome> {
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(dir).arg(argument);
    process::run(command, Duration::from_secs(200))?.ok()
}

/// Several processes change one database; each transaction moves money, so that a lost or torn one
/// changes the sum.
const BANK: &str = "
import os, sqlite3, sys, random
path, mode = os.path.join(sys.argv[1], sys.argv[2] + '.db'), sys.argv[2]
def connect():
    db = sqlite3.connect(path, timeout=120, isolation_level=None)
    db.execute('pragma synchronous = full')
    return db
db = connect()
assert db.execute('pragma journal_mode = ' + mode).fetchone()[0] == mode
db.execute('create table accounts (id integer primary key, money integer)')
db.execute('create table moves (worker integer, n integer, text text)')
db.executemany('insert into accounts values (?, 100)', [(n,) for n in range(20)])
db.close()
children = []
for worker in range(3):
    child = os.fork()
    if child == 0:
        try:
            rng, db = random.Random(worker), connect()
            for n in range(40):
                a, b = rng.sample(range(20), 2)
                db.execute('begin immediate')
                db.execute('update accounts set money = money - 1 where id = ?', (a,))
                db.execute('insert into moves values (?, ?, ?)', (worker, n, 'x' * rng.randrange(5000)))
                db.execute('update accounts set money = money + 1 where id = ?', (b,))
                db.execute('rollback' if n % 10 == 9 else 'commit')
            db.close()
            os._exit(0)
        except BaseException as error:
            print(worker, error, file=sys.stderr, flush=True)
            os._exit(1)
    children.append(child)
assert all(os.waitpid(child, 0)[1] == 0 for child in children), 'a worker failed'
db = connect()
assert db.execute('pragma integrity_check').fetchone()[0] == 'ok'
assert db.execute('select sum(money) from accounts').fetchone()[0] == 2000
assert db.execute('select count(*) from moves').fetchone()[0] == 3 * 36
";

#[test]
fn sqlite_works_in_both_journal_modes() -> Result<()> {
    let cluster = DevCluster::builder().mounted().start()?;
    for mode in ["delete", "wal"] {
        python(BANK, &cluster.mount(), mode)?;
    }
    cluster.ensure_all_run()?;
    cluster.finish()
}

#[test]
fn programs_do_not_notice_the_loss_of_a_chunkserver() -> Result<()> {
    let seed = seed::or(33);
    let cluster = DevCluster::builder().mounted().seed(seed).start()?;
    let tree = Tree::generate(seed, 120);
    let source = cluster.work().join("tree");
    tree.write(&source)?;
    cluster.kill9(Node::chunkserver(1))?;
    let mount = cluster.mount();
    let script = "
        export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        rsync -a \"$1/\" \"$2/synced/\"; diff -r \"$1\" \"$2/synced\"
        tar -C \"$1\" -cf \"$2/tree.tar\" .; mkdir \"$2/untarred\"
        tar -C \"$2/untarred\" -xf \"$2/tree.tar\"; diff -r \"$1\" \"$2/untarred\"
        git init -q \"$2/repository\"; cp -r \"$1/.\" \"$2/repository/\"; cd \"$2/repository\"
        git add .; git commit -qm all; git clone -q . \"$2/clone\"; git fsck --strict
        cd \"$2/clone\"; test -z \"$(git status --porcelain)\"";
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "sh"]).args([&source, &mount]);
    process::run(command, Duration::from_secs(200))?.ok()?;
    python(BANK, &mount, "wal")?;
    cluster.start_node(Node::chunkserver(1))?;
    cluster.wait_healthy()?;
    tree.ensure_equals(&Tree::read(&mount.join("synced"))?, "after the chunkserver is back")?;
    ensure!(fs::read_dir(mount.join("clone"))?.count() > 1);
    cluster.finish()
}
