//! What can be typed. Each verb's own arguments are in its file under `commands`.

use std::path::PathBuf;
use std::time::Duration;

use atoll_client::{RuleChoices, Wait};
use atoll_proto::site::{Dialect, HtmlHandling};
use atoll_proto::{AliasName, SiteName};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands;
use crate::lifetime::Lifetime;
use crate::report::Failure;

/// Static sites served from your own machines: storage, edges, DNS and deploys in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "atoll",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "EXAMPLES
  atoll dev                                   a whole cluster on this machine, until Ctrl-C
  atoll deploy ./public --site blog --create  a site online; prints its URL
  atoll rollback blog                         back to the deploy before
  atoll mount ~/lagoon                        the cluster's file system as a directory
  atoll help deploy                           everything about one verb"
)]
pub(crate) struct Cli {
    /// What every verb takes.
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every verb takes.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct GlobalArgs {
    /// Client configuration; without it ATOLL_CONFIG, ./.atoll/client.toml or
    /// ~/.config/atoll/client.toml. For master, chunkserver and edge: the role's configuration
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print the result as JSON: line events, then one final object
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// One verb each.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(subcommand)]
    Site(commands::site::SiteCommand),
    Deploy(commands::deploy::DeployArgs),
    Deploys(commands::deploys::DeploysArgs),
    Rollback(commands::rollback::RollbackArgs),
    Promote(commands::promote::PromoteArgs),
    Publish(commands::publish::PublishArgs),
    Invalidate(commands::invalidate::InvalidateArgs),
    #[command(subcommand)]
    Redirects(commands::redirects::RedirectsCommand),
    Upload(commands::upload::UploadArgs),
    Ls(commands::ls::LsArgs),
    Stat(commands::stat::StatArgs),
    Cat(commands::cat::CatArgs),
    Rm(commands::rm::RmArgs),
    Mkdir(commands::mkdir::MkdirArgs),
    Mv(commands::mv::MvArgs),
    Cp(commands::cp::CpArgs),
    Mount(commands::mount::MountArgs),
    Umount(commands::umount::UmountArgs),
    Status(commands::status::StatusArgs),
    Fsck(commands::fsck::FsckArgs),
    Scrub(commands::scrub::ScrubArgs),
    #[command(subcommand)]
    Collection(commands::collection::CollectionCommand),
    Backup(commands::backup::BackupArgs),
    Restore(commands::restore::RestoreArgs),
    #[command(subcommand)]
    Node(commands::node::NodeCommand),
    #[command(subcommand)]
    Token(commands::token::TokenCommand),
    #[command(subcommand)]
    Dns(commands::dns::DnsCommand),
    Get(commands::get::GetArgs),
    Verify(commands::verify::VerifyArgs),
    Dev(commands::dev::DevArgs),
    Init(commands::init::InitArgs),
    Master(commands::role::MasterArgs),
    Chunkserver(commands::role::ChunkserverArgs),
    Edge(commands::role::EdgeArgs),
    Completions(commands::completions::CompletionsArgs),
    Man(commands::man::ManArgs),
}

/// Which of a site's aliases a verb is about.
#[derive(Debug, Clone, Args)]
pub(crate) struct AliasArgs {
    /// Which alias of the site to point at it; others than production are served as
    /// <alias>--<site>
    #[arg(long, value_name = "ALIAS", default_value = "production")]
    pub(crate) alias: AliasName,
}

/// How long the alias lives.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExpiresArgs {
    /// Remove the alias after so long, such as 12h or 7d; its deploys stay. Not for production
    #[arg(long, value_name = "TIME")]
    pub(crate) expires: Option<Lifetime>,
}

impl ExpiresArgs {
    /// Refuses what the master would refuse.
    pub(crate) fn check(&self, alias: &AliasName) -> Result<(), Failure> {
        if self.expires.is_none() || *alias != AliasName::production() {
            return Ok(());
        }
        let message = "production cannot expire: name another alias with --alias";
        Err(Failure::Usage(message.to_owned()))
    }
}

/// How long a verb that publishes waits.
#[derive(Debug, Clone, Args)]
pub(crate) struct WaitArgs {
    /// Return when no edge answers with what was before any more, when the edges have the change
    /// that confirm it in time, or at once
    #[arg(long, value_enum, value_name = "WHO", default_value = "all")]
    pub(crate) wait: WaitFor,
    /// Wait at most this long; with --wait all, longer for an edge that is silent until its lease
    /// has surely ended, unless the site's policy lets it serve on for ever
    #[arg(long, value_name = "SECS", default_value_t = 60)]
    pub(crate) timeout: u64,
}

/// Which edges to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaitFor {
    /// Every edge, until it has confirmed or cannot answer any more; exit code 6 if one may
    All,
    /// Those that confirm in time
    Reachable,
    /// None
    None,
}

impl WaitArgs {
    /// In the client library's words.
    pub(crate) fn wait(&self) -> Wait {
        match self.wait {
            WaitFor::All => Wait::All,
            WaitFor::Reachable => Wait::Reachable,
            WaitFor::None => Wait::None,
        }
    }

    /// The bound.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// How the rules of a site are read: a setting of the site, or of one deploy instead of it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RuleArgs {
    /// How `_redirects` and `_headers` are read: `netlify` or `pages` [of a new site: netlify]
    #[arg(long, value_name = "DIALECT")]
    dialect: Option<Dialect>,
    /// URLs of pages: `lenient`, `auto-trailing-slash`, `force-trailing-slash`,
    /// `drop-trailing-slash` or `none` [of a new site: lenient]
    #[arg(long, value_name = "MODE")]
    html_handling: Option<HtmlHandling>,
    /// Navigations to paths that do not exist get /index.html; `--spa=false` where they do not
    /// [of a new site: false]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    spa: Option<bool>,
}

impl RuleArgs {
    /// In the client library's words.
    pub(crate) fn choices(&self) -> RuleChoices {
        RuleChoices { dialect: self.dialect, html_handling: self.html_handling, spa: self.spa }
    }
}

/// The site most verbs are about.
#[derive(Debug, Clone, Args)]
pub(crate) struct SiteArg {
    /// Name of the site
    #[arg(value_name = "SITE")]
    pub(crate) site: SiteName,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    fn leaves(command: &clap::Command, above: &str, out: &mut Vec<(String, clap::Command)>) {
        let name = format!("{above} {}", command.get_name());
        let own_arguments = command.get_positionals().next().is_some();
        if !command.has_subcommands() || own_arguments {
            out.push((name.clone(), command.clone()));
        }
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            leaves(below, &name, out);
        }
    }

    /// As a shell would, for single quotes.
    fn words(command: &str) -> Vec<String> {
        let mut words = Vec::new();
        for (number, part) in command.split('\'').enumerate() {
            if number % 2 == 1 {
                words.push(part.to_owned());
            } else {
                words.extend(part.split_whitespace().map(str::to_owned));
            }
        }
        words
    }

    #[test]
    fn every_verb_has_examples_that_parse() {
        let mut verbs = Vec::new();
        leaves(&Cli::command(), "", &mut verbs);
        assert!(verbs.len() > 30, "{}", verbs.len());
        let abouts: std::collections::BTreeSet<String> =
            verbs.iter().map(|(_, verb)| verb.get_about().unwrap().to_string()).collect();
        assert_eq!(abouts.len(), verbs.len(), "two verbs say the same of themselves: {abouts:#?}");
        for (name, verb) in verbs {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("EXAMPLES\n"), "{name} has no examples");
            let examples = help.split("EXAMPLES\n").nth(1).unwrap();
            for line in examples.lines().map(str::trim).filter(|line| line.starts_with("atoll ")) {
                let command = line.split("  ").next().unwrap();
                let command = command.split(" | ").next().unwrap().split(" > ").next().unwrap();
                let parsed = Cli::try_parse_from(words(command));
                assert!(parsed.is_ok(), "{name}: {command}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn usage_errors_exit_with_2() {
        for line in [
            "atoll nonsense",
            "atoll deploy",
            "atoll deploy dir --site Bad_Name",
            "atoll deploy dir --site blog --alias pr-7 --expires soon",
            "atoll ls relative/path",
            "atoll deploys",
            "atoll invalidate blog",
            "atoll dev stop wizard 1",
            "atoll dev --masters 2",
            "atoll dev add edge",
            "atoll node drain",
            "atoll dns explain blog.cdn.example",
            "atoll dns explain blog.cdn.example --client nobody",
            "atoll node replace c1",
            "atoll get https://x --http1 --http2",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn global_arguments_may_stand_anywhere() {
        for line in ["atoll --json --config f status", "atoll status --config f --json"] {
            let cli = parse(line).unwrap();
            assert!(cli.global.json);
            assert_eq!(cli.global.config.unwrap(), PathBuf::from("f"));
        }
        let cli = parse("atoll chunkserver --config node.toml").unwrap();
        assert_eq!(cli.global.config.unwrap(), PathBuf::from("node.toml"));
    }

    #[test]
    fn what_follows_spa_is_no_value_of_it() {
        for (line, expected) in [
            ("atoll deploy --spa app --site blog", Some(true)),
            ("atoll deploy app --site blog --spa=false", Some(false)),
            ("atoll deploy app --site blog", None),
        ] {
            let Command::Deploy(args) = parse(line).unwrap().command else { panic!("{line}") };
            assert_eq!((args.dir, args.rules.spa), (PathBuf::from("app"), expected), "{line}");
        }
        assert!(parse("atoll site create --spa app").is_ok());
        assert!(parse("atoll site set app --spa true").is_err());
    }

    #[test]
    fn lists_of_deploys_and_verbs_on_one_share_a_word() {
        let Command::Deploys(args) = parse("atoll deploys blog").unwrap().command else {
            panic!("not deploys");
        };
        assert!(args.command.is_none());
        assert!(parse("atoll deploys diff blog 0011aabb 2233ccdd").is_ok());
        assert!(parse("atoll dev start chunkserver 2 --data x").is_ok());
        assert!(parse("atoll dev ./public --edges 3").is_ok());
    }
}
