//! `atoll token`: what users and programs may do.

use atoll_proto::master::{Change, Changed, Grant, MasterRequest, MasterResponse, TokenView, Verb};
use atoll_proto::{ChunkId, SiteName, limits};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::cluster_path::unexpected;
use crate::connect::Context;
use crate::report::Failure;
use crate::{table, text};

/// Create, list and remove the tokens that allow users and programs to use the cluster
#[derive(Debug, Subcommand)]
#[command(after_help = "EXAMPLES
  atoll token create ci --verb deploy --site blog --expires 90d
  atoll token ls")]
pub(crate) enum TokenCommand {
    /// Create a token and print its secret, which is shown only now
    #[command(after_help = "EXAMPLES
  atoll token create ci --verb read --verb deploy --site blog --expires 90d
  atoll token create admin-laptop --verb admin

Put the secret into the client configuration as token = \"...\".")]
    Create(CreateArgs),
    /// List tokens, without their secrets
    #[command(after_help = "EXAMPLES
  atoll token ls --json")]
    Ls,
    /// Remove a token: it stops working at once
    #[command(after_help = "EXAMPLES
  atoll token rm 7")]
    Rm(RmArgs),
}

/// A token to be made.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Who or what it is for
    #[arg(value_name = "NAME")]
    name: String,
    /// What it allows; may be given several times
    #[arg(long = "verb", value_enum, value_name = "VERB", required = true)]
    verbs: Vec<VerbArg>,
    /// Only on this site
    #[arg(long, value_name = "SITE")]
    site: Option<SiteName>,
    /// Void after this long, such as 12h or 90d; without it never
    #[arg(long, value_name = "TIME", value_parser = lifetime_ms)]
    expires: Option<u64>,
}

/// A token to be removed.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// The id that `token ls` shows
    #[arg(value_name = "ID")]
    id: u64,
}

/// What a token may allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VerbArg {
    /// Read files, sites and status
    Read,
    /// Change files
    Write,
    /// Deploy, move aliases, invalidate
    Deploy,
    /// Sites, tokens, nodes
    Admin,
}

impl From<VerbArg> for Verb {
    fn from(verb: VerbArg) -> Verb {
        match verb {
            VerbArg::Read => Verb::Read,
            VerbArg::Write => Verb::Write,
            VerbArg::Deploy => Verb::Deploy,
            VerbArg::Admin => Verb::Admin,
        }
    }
}

fn lifetime_ms(typed: &str) -> Result<u64, String> {
    let wrong = || format!("{typed:?} is no time; write a number and s, m, h or d, such as 90d");
    let unit = typed.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = typed[..typed.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds * 1000).filter(|ms| *ms > 0).ok_or_else(wrong)
}

#[derive(Serialize)]
struct MadeObject<'a> {
    id: u64,
    name: &'a str,
    secret: &'a str,
}

#[derive(Serialize)]
struct TokensObject {
    tokens: Vec<TokenView>,
}

/// A secret nobody can guess: 32 random bytes, with a prefix that scanners for leaked secrets can
/// look for.
pub(crate) fn new_secret() -> String {
    let mut bytes = [0; 32];
    rand::Rng::fill(&mut rand::rng(), &mut bytes[..]);
    format!("atoll_{}", atoll_proto::ids::hex(&bytes))
}

/// What the cluster keeps of a secret.
pub(crate) fn hash_of(secret: &str) -> ChunkId {
    ChunkId::of(secret.as_bytes())
}

/// Does it.
pub(crate) async fn run(context: &Context, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(args) => create(context, args).await,
        TokenCommand::Ls => list(context).await,
        TokenCommand::Rm(RmArgs { id }) => {
            let cluster = context.cluster().await?;
            cluster.change(Change::TokenRemove { id }).await?;
            context.out.note(format_args!("removed token {id}"));
            Ok(())
        }
    }
}

async fn create(context: &Context, args: CreateArgs) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    let secret = new_secret();
    let grant = Grant {
        name: args.name.clone(),
        verbs: args.verbs.into_iter().map(Verb::from).collect(),
        site: args.site,
        expires_ms: args.expires.map(|ms| text::now_ms().saturating_add(ms)),
    };
    let (_, made) = cluster.change(Change::TokenCreate { hash: hash_of(&secret), grant }).await?;
    let Changed::TokenMade { id } = made else {
        return Err(unexpected("token"));
    };
    if context.out.json() {
        return context.out.object(&MadeObject { id, name: &args.name, secret: &secret });
    }
    context
        .out
        .note(format_args!("token {id} for {}; this is the only time it is shown:", args.name));
    context.out.line(secret)
}

async fn list(context: &Context) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    let answer = cluster.master(&MasterRequest::Tokens, limits::METADATA_DEADLINE).await?;
    let MasterResponse::Tokens(tokens) = answer else {
        return Err(unexpected("tokens"));
    };
    if context.out.json() {
        return context.out.object(&TokensObject { tokens });
    }
    let rows: Vec<Vec<String>> = tokens.iter().map(row).collect();
    let heading = [">id", "name", "verbs", "site", "expires (UTC)", "created (UTC)"];
    context.out.line(table::render(&heading, &rows))
}

fn row(token: &TokenView) -> Vec<String> {
    let moment = |ms: u64| text::utc(i64::try_from(ms).unwrap_or(i64::MAX));
    let grant = &token.grant;
    let verbs: Vec<String> =
        grant.verbs.iter().map(|verb| format!("{verb:?}").to_lowercase()).collect();
    vec![
        token.id.to_string(),
        text::name(grant.name.as_bytes()),
        verbs.join(" "),
        grant.site.as_ref().map_or("all".to_owned(), SiteName::to_string),
        grant.expires_ms.map_or("never".to_owned(), moment),
        moment(token.created_ms),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes() {
        assert_eq!(lifetime_ms("90d"), Ok(90 * 86_400_000));
        assert_eq!(lifetime_ms("1s"), Ok(1000));
        for bad in ["", "d", "90", "0d", "-1d", "1w", "99999999999999999999d", "9999999999999999d"]
        {
            assert!(lifetime_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_differ_and_only_their_hash_is_kept() {
        let (one, two) = (new_secret(), new_secret());
        assert_ne!(one, two);
        assert_eq!(one.len(), "atoll_".len() + 64);
        assert_ne!(hash_of(&one), hash_of(&two));
    }
}
