//! `atoll init`: the files of a real cluster: authority, identities, configurations, a token.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use atoll_client::ClientConfig;
use atoll_net::{ClusterCa, Role};
use clap::Args;

use super::token::{hash_of, new_secret};
use crate::connect::Context;
use crate::node_files::{
    ChunkserverFile, DnsLines, EdgeFile, MasterFile, PeerLine, TlsLines, ensure_ca,
    ensure_identity, new_cluster, write_config,
};
use crate::report::Failure;

/// Distance from a node's port to those of its admin interface.
const ADMIN_OFFSET: u16 = 1;

/// Make the files of a new cluster, one folder per node to be copied to its machine. Run again on
/// the same directory to add chunkservers and edges
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll init ./cluster --zone cdn.example --master m1=10.0.0.1:7000
  atoll init ./cluster --chunkserver c1=10.0.0.2:7000,z1 --chunkserver c2=10.0.0.3:7000,z2
  atoll init ./cluster --edge e1=10.0.0.4:7000,eu

Then, on each machine, with its folder:
  atoll master --config m1/master.toml
Keep the folder `ca` secret and off the machines.")]
pub(crate) struct InitArgs {
    /// Where to write; it is made if need be
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// DNS zone under which sites have names
    #[arg(long, value_name = "DOMAIN", default_value = "atoll.test")]
    zone: String,
    /// A master: its name and where others reach it (only when the cluster is new)
    #[arg(long = "master", value_name = "NAME=ADDR", value_parser = node)]
    masters: Vec<NodeArg>,
    /// A chunkserver, with its failure domain
    #[arg(long = "chunkserver", value_name = "NAME=ADDR,ZONE", value_parser = placed_node)]
    chunkservers: Vec<NodeArg>,
    /// An edge, with its region
    #[arg(long = "edge", value_name = "NAME=ADDR,REGION", value_parser = placed_node)]
    edges: Vec<NodeArg>,
}

/// A node as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NodeArg {
    name: String,
    addr: SocketAddr,
    place: String,
}

fn node(typed: &str) -> Result<NodeArg, String> {
    let wrong = || "write NAME=ADDRESS:PORT, such as m1=10.0.0.1:7000".to_owned();
    let (name, addr) = typed.split_once('=').ok_or_else(wrong)?;
    let addr = addr.parse().map_err(|_error| wrong())?;
    if name.is_empty() || name.contains('/') {
        return Err(wrong());
    }
    Ok(NodeArg { name: name.to_owned(), addr, place: String::new() })
}

fn placed_node(typed: &str) -> Result<NodeArg, String> {
    let (rest, place) = typed.rsplit_once(',').ok_or("write NAME=ADDRESS:PORT,PLACE")?;
    if place.is_empty() {
        return Err("the place after the comma is empty".to_owned());
    }
    Ok(NodeArg { place: place.to_owned(), ..node(rest)? })
}

/// Does it.
pub(crate) fn run(context: &Context, args: &InitArgs) -> Result<(), Failure> {
    let known = args.dir.join("ca/ca.pem").exists();
    match (known, args.masters.is_empty()) {
        (true, false) => {
            return Err(Failure::Failed(format!(
                "{} holds a cluster already; its masters stay those it was made with",
                args.dir.display()
            )));
        }
        (false, true) => {
            return Err(Failure::Usage(
                "a new cluster needs a master: --master NAME=ADDR".to_owned(),
            ));
        }
        _ => {}
    }
    std::fs::create_dir_all(&args.dir).map_err(Failure::file("make", &args.dir))?;
    let ca = ensure_ca(&args.dir.join("ca"), new_cluster())?;
    if !known {
        found(&ca, args)?;
    }
    let client = ClientConfig::load(&args.dir.join("client.toml"))?;
    let taken = taken_ids(&args.dir)?;
    let mut ids = (1..).filter(|id| !taken.contains(id));
    for node in &args.chunkservers {
        let id = ids.next().unwrap_or(u64::MAX);
        add_chunkserver(&ca, args, &client, node, id)?;
    }
    for node in &args.edges {
        let id = ids.next().unwrap_or(u64::MAX);
        add_edge(&ca, args, &client, node, id)?;
    }
    let dir = args.dir.display();
    context.out.note(format_args!(
        "wrote {dir}; copy each node's folder to its machine, start it, and use the cluster with \
         --config {dir}/client.toml"
    ));
    context.out.line(args.dir.join("client.toml").display())
}

/// Masters, the first token, the client's files.
fn found(ca: &ClusterCa, args: &InitArgs) -> Result<(), Failure> {
    let secret = new_secret();
    let peers: Vec<PeerLine> =
        (1..).zip(&args.masters).map(|(id, master)| PeerLine { id, addr: master.addr }).collect();
    for (id, master) in (1..).zip(&args.masters) {
        let dir = node_dir(&args.dir, &master.name)?;
        ensure_identity(ca, Role::Master, &master.name, &dir.join("identity"))?;
        let file = MasterFile {
            id,
            name: master.name.clone(),
            cluster: ca.cluster().to_string(),
            listen: master.addr,
            admin: admin(master.addr),
            data: "data".into(),
            identity: "identity".into(),
            ready_file: None,
            bootstrap: id == 1,
            zone: Some(args.zone.clone()),
            url_template: Some(format!("https://{{site}}.{}/", args.zone)),
            bootstrap_token_hash: Some(hash_of(&secret).to_string()),
            peers: peers.clone(),
        };
        write_config(&dir.join("master.toml"), &file)?;
    }
    ensure_identity(ca, Role::Client, "client", &args.dir.join("client"))?;
    let client = ClientConfig {
        masters: args.masters.iter().map(|master| master.addr).collect(),
        identity: "client".into(),
        token: Some(secret),
        zone_hint: None,
    };
    Ok(client.save(&args.dir.join("client.toml"))?)
}

fn add_chunkserver(
    ca: &ClusterCa,
    args: &InitArgs,
    client: &ClientConfig,
    node: &NodeArg,
    id: u64,
) -> Result<(), Failure> {
    let dir = node_dir(&args.dir, &node.name)?;
    ensure_identity(ca, Role::Chunkserver, &node.name, &dir.join("identity"))?;
    let file = ChunkserverFile {
        id,
        name: node.name.clone(),
        cluster: ca.cluster().to_string(),
        listen: node.addr,
        admin: admin(node.addr),
        data: "data".into(),
        identity: "identity".into(),
        ready_file: None,
        masters: client.masters.clone(),
        zone: node.place.clone(),
        region: String::new(),
    };
    write_config(&dir.join("chunkserver.toml"), &file)
}

fn add_edge(
    ca: &ClusterCa,
    args: &InitArgs,
    client: &ClientConfig,
    node: &NodeArg,
    id: u64,
) -> Result<(), Failure> {
    let dir = node_dir(&args.dir, &node.name)?;
    ensure_identity(ca, Role::Edge, &node.name, &dir.join("identity"))?;
    // To begin with; a certificate that browsers trust may replace it while the edge runs.
    let names = [format!("*.{}", args.zone), args.zone.clone()];
    let web = ca.issue_web(&names)?;
    write_secret(&dir.join("web.pem"), &web.chain_pem)?;
    write_secret(&dir.join("web.key"), &web.key_pem)?;
    let any = |port| (node.addr.ip(), port).into();
    let file = EdgeFile {
        id,
        name: node.name.clone(),
        listen: node.addr,
        admin: admin(node.addr),
        data: "data".into(),
        identity: "identity".into(),
        ready_file: None,
        masters: client.masters.clone(),
        zone: node.place.clone(),
        region: node.place.clone(),
        roles: vec!["edge", "dns"],
        http: any(80),
        https: any(443),
        public: vec![node.addr.ip()],
        dns_zone: args.zone.clone(),
        tls: TlsLines { cert: "web.pem".into(), key: "web.key".into(), authority: None },
        dns: Some(DnsLines {
            listen: any(53),
            zone: args.zone.clone(),
            ns_addrs: args.edges.iter().map(|edge| edge.addr.ip()).collect(),
        }),
    };
    write_config(&dir.join("edge.toml"), &file)
}

/// A new folder for a node.
fn node_dir(dir: &Path, name: &str) -> Result<PathBuf, Failure> {
    let path = dir.join(name);
    if path.exists() {
        return Err(Failure::Failed(format!("{} exists already", path.display())));
    }
    std::fs::create_dir(&path).map_err(Failure::file("make", &path))?;
    Ok(path)
}

/// Ids that nodes of this directory have.
fn taken_ids(dir: &Path) -> Result<Vec<u64>, Failure> {
    let mut taken = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Failure::file("read", dir))? {
        let entry = entry.map_err(Failure::file("read", dir))?;
        for name in ["chunkserver.toml", "edge.toml"] {
            let Ok(text) = std::fs::read_to_string(entry.path().join(name)) else {
                continue;
            };
            let id = text.parse::<toml::Table>().ok().and_then(|t| t.get("id")?.as_integer());
            taken.extend(id.and_then(|id| u64::try_from(id).ok()));
        }
    }
    Ok(taken)
}

/// Admin interfaces listen on loopback unless told otherwise.
fn admin(addr: SocketAddr) -> SocketAddr {
    ([127, 0, 0, 1], addr.port().wrapping_add(ADMIN_OFFSET)).into()
}

fn write_secret(path: &Path, text: &str) -> Result<(), Failure> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(Failure::file("write", path))?;
    file.write_all(text.as_bytes()).map_err(Failure::file("write", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn init(dir: &Path, more: &[&str]) -> Result<(), Failure> {
        let words = ["atoll", "init", dir.to_str().unwrap()];
        let cli = Cli::parse_from(words.iter().chain(more));
        let Command::Init(args) = cli.command else { panic!("not init") };
        run(&Context::new(cli.global), &args)
    }

    #[test]
    fn a_cluster_is_made_once_and_grows() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(init(dir.path(), &[]), Err(Failure::Usage(_))));
        init(
            dir.path(),
            &["--master", "m1=127.0.0.1:7000", "--chunkserver", "c1=127.0.0.1:7010,z1"],
        )
        .unwrap();
        init(dir.path(), &["--edge", "e1=127.0.0.1:7020,eu"]).unwrap();
        assert!(init(dir.path(), &["--master", "m2=127.0.0.1:7001"]).is_err());
        assert!(init(dir.path(), &["--edge", "e1=127.0.0.1:7020,eu"]).is_err());

        let client = ClientConfig::load(&dir.path().join("client.toml")).unwrap();
        assert_eq!(client.masters, ["127.0.0.1:7000".parse().unwrap()]);
        atoll_net::Identity::load(&client.identity).unwrap();
        atoll_master::Config::load(&dir.path().join("m1/master.toml")).unwrap();
        atoll_chunkserver::Config::load(&dir.path().join("c1/chunkserver.toml")).unwrap();
        let edge = atoll_edge::Config::load(&dir.path().join("e1/edge.toml")).unwrap();
        assert_eq!(edge.id, 2, "the chunkserver has 1");
    }

    #[test]
    fn nodes_are_typed_as_name_address_and_place() {
        let typed = placed_node("c1=10.0.0.1:7000,z1").unwrap();
        assert_eq!((typed.name.as_str(), typed.place.as_str()), ("c1", "z1"));
        for bad in ["c1=10.0.0.1:7000", "c1=10.0.0.1,z1", "=10.0.0.1:1,z", "c1=10.0.0.1:7000,"] {
            assert!(placed_node(bad).is_err(), "{bad}");
        }
    }
}
