//! From the command line to a cluster: where the client configuration is.

use std::path::{Path, PathBuf};

use atoll_client::{ClientConfig, Cluster};

use crate::args::GlobalArgs;
use crate::output::Output;
use crate::report::Failure;

const LOCAL: &str = ".atoll/client.toml";

/// What every verb gets beside its own arguments.
pub(crate) struct Context {
    /// `--config`, as given.
    pub(crate) config: Option<PathBuf>,
    /// Where the result goes.
    pub(crate) out: Output,
}

impl Context {
    /// From the arguments that every verb has.
    pub(crate) fn new(global: GlobalArgs) -> Self {
        Self { config: global.config, out: Output::new(global.json) }
    }

    /// The path of the client configuration, made absolute.
    pub(crate) fn config_path(&self) -> Result<PathBuf, Failure> {
        let found = match &self.config {
            Some(path) => path.clone(),
            None => discover(std::env::var_os("ATOLL_CONFIG").map(PathBuf::from), &config_home())?,
        };
        std::path::absolute(&found).map_err(Failure::file("find", &found))
    }

    /// The client configuration.
    pub(crate) fn client_config(&self) -> Result<ClientConfig, Failure> {
        Ok(ClientConfig::load(&self.config_path()?)?)
    }

    /// A connection to the cluster.
    pub(crate) async fn cluster(&self) -> Result<Cluster, Failure> {
        connect(&self.client_config()?).await
    }
}

/// Connects with this configuration, under a name that tells people which process it is.
pub(crate) async fn connect(config: &ClientConfig) -> Result<Cluster, Failure> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = format!("atoll {}@{}", std::process::id(), host.trim());
    Ok(Cluster::connect(config, &name).await?)
}

fn config_home() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .unwrap_or_default()
}

fn discover(variable: Option<PathBuf>, config_home: &Path) -> Result<PathBuf, Failure> {
    if let Some(path) = variable.filter(|path| !path.as_os_str().is_empty()) {
        return Ok(path);
    }
    let home = config_home.join("atoll/client.toml");
    for path in [PathBuf::from(LOCAL), home.clone()] {
        if path.exists() {
            return Ok(path);
        }
    }
    Err(Failure::Failed(format!(
        "no client configuration: neither --config nor ATOLL_CONFIG is set, and neither ./{LOCAL} \
         nor {} exists; start a local cluster with `atoll dev`, or get a client.toml from whoever \
         ran `atoll init`",
        home.display()
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_variable_wins_and_its_absence_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let given = discover(Some("/x/client.toml".into()), dir.path()).unwrap();
        assert_eq!(given, Path::new("/x/client.toml"));
        let text = discover(None, dir.path()).unwrap_err().to_string();
        assert!(text.contains("atoll dev") && text.contains("atoll init"), "{text}");
        std::fs::create_dir(dir.path().join("atoll")).unwrap();
        let file = dir.path().join("atoll/client.toml");
        std::fs::write(&file, "").unwrap();
        assert_eq!(discover(Some(PathBuf::new()), dir.path()).unwrap(), file);
    }
}
