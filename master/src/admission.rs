//! Taking part for the first time.
//!
//! A master whose log is empty knows no vote it gave and no entry it acknowledged. If it ever had any,
//! under the same id, two leaders could be elected and acknowledged changes be lost; so it takes
//! part in consensus only once another master confirms that the cluster took *this* data directory in,
//! by its incarnation, a number made at random at its first start. The masters that form a cluster
//! together are confirmed by the one that forms it (`bootstrap`), all others by the replicated state.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use atoll_proto::masters::{Greeting, Incarnation, Standing};
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Config;
use crate::identity::{self, DataError};
use crate::ops::masters::ask;
use crate::run::RunError;
use crate::server::Master;

/// How often the others are asked.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How often the log says what is waited for.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Whether this master takes part in consensus, and whom it formed the cluster with.
#[derive(Debug)]
pub(crate) struct Admission {
    incarnation: Incarnation,
    founders: Mutex<BTreeMap<u64, Incarnation>>,
    admitted: watch::Sender<bool>,
}

impl Admission {
    /// Of a master with this incarnation; one with a log is admitted. With whom it formed the cluster
    /// counts only once it has: without a log it forms it again.
    pub(crate) fn new(
        incarnation: Incarnation,
        founders: BTreeMap<u64, Incarnation>,
        admitted: bool,
    ) -> Admission {
        let founders = Mutex::new(if admitted { founders } else { BTreeMap::new() });
        Admission { incarnation, founders, admitted: watch::Sender::new(admitted) }
    }

    /// This master's incarnation.
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The incarnation of a master that this one formed the cluster with.
    pub(crate) fn founder(&self, id: u64) -> Option<Incarnation> {
        let founders = self.founders.lock().unwrap_or_else(PoisonError::into_inner);
        founders.get(&id).copied()
    }

    /// Whether it may take part in consensus.
    pub(crate) fn is_admitted(&self) -> bool {
        *self.admitted.borrow()
    }

    fn admit(&self, founders: Option<BTreeMap<u64, Incarnation>>) {
        if let Some(founders) = founders {
            *self.founders.lock().unwrap_or_else(PoisonError::into_inner) = founders;
        }
        self.admitted.send_replace(true);
    }
}

/// What a look at the others says.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// Take part.
    Join,
    /// Form a cluster with these.
    Form(BTreeMap<u64, Incarnation>),
    /// Never take part, as this master says.
    Refuse(u64),
    /// Ask again.
    Wait,
}

/// Waits until a master without a log may take part, and forms the cluster if that is its part.
///
/// # Errors
/// When its id belongs to another data directory.
pub(crate) async fn join(master: &Master, config: &Config) -> Result<(), RunError> {
    let all = config.masters(master.addr());
    let mut told = Instant::now();
    loop {
        let greetings = greet_all(master, config.id, &all).await;
        let own = (config.id, master.admission.incarnation());
        match decide(own, config.bootstrap, &greetings) {
            Decision::Refuse(by) => return Err(refused(config, by).into()),
            Decision::Join => {
                tracing::info!(id = config.id, "taken in by the masters");
                master.admission.admit(None);
                return claim_once_used(master, config).await;
            }
            Decision::Form(founders) => {
                identity::found(config, &founders)?;
                master.admission.admit(Some(founders));
                let failed = |error: crate::store::StoreError| RunError::Failed(error.to_string());
                master.consensus.bootstrap(all).await.map_err(failed)?;
                identity::claim(config)?;
                master.consensus.elect_if_alone().await;
                return Ok(());
            }
            Decision::Wait => {}
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tell(config, &greetings);
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            () = master.shutdown.wait() => return Ok(()),
        }
    }
}

/// From its first vote or entry on the directory must not lose its log.
async fn claim_once_used(master: &Master, config: &Config) -> Result<(), RunError> {
    let failed = |error: crate::store::StoreError| RunError::Failed(error.to_string());
    while master.consensus.log_is_empty().map_err(failed)? {
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            () = master.shutdown.wait() => return Ok(()),
        }
    }
    Ok(identity::claim(config)?)
}

/// What every other master says; `None` for one that does not answer.
async fn greet_all(
    master: &Master,
    own: u64,
    all: &BTreeMap<u64, SocketAddr>,
) -> BTreeMap<u64, Option<Greeting>> {
    let asked = all.iter().filter(|(id, _)| **id != own).map(|(id, addr)| async move {
        let greeting = ask(master, *addr).await.ok().filter(|greeting| greeting.id == *id);
        (*id, greeting)
    });
    join_all(asked).await.into_iter().collect()
}

fn decide(
    own: (u64, Incarnation),
    bootstrap: bool,
    greetings: &BTreeMap<u64, Option<Greeting>>,
) -> Decision {
    let said = |standing: Standing| {
        let said = greetings.iter().find(|(_, it)| it.is_some_and(|it| it.standing == standing));
        said.map(|(id, _)| *id)
    };
    if let Some(by) = said(Standing::Refused) {
        return Decision::Refuse(by);
    }
    if said(Standing::Admitted).is_some() {
        return Decision::Join;
    }
    // Only with all of them: one that does not answer may know of a cluster that there is.
    let fresh = |greeting: &Option<Greeting>| greeting.filter(|greeting| !greeting.formed);
    let fresh: Option<Vec<Greeting>> = greetings.values().map(fresh).collect();
    match fresh {
        Some(fresh) if bootstrap => {
            let others = fresh.into_iter().map(|greeting| (greeting.id, greeting.incarnation));
            Decision::Form(others.chain([own]).collect())
        }
        _ => Decision::Wait,
    }
}

fn refused(config: &Config, by: u64) -> DataError {
    let reason = format!(
        "its log is empty, but master {by} knows master {} with another data directory, or as \
         removed. A master that lost its log must not take part again: give it a new id and let it \
         take the place of the old one (`atoll node replace`)",
        config.id
    );
    DataError::new(&config.data, reason)
}

fn tell(config: &Config, greetings: &BTreeMap<u64, Option<Greeting>>) {
    let silent: Vec<String> = greetings
        .iter()
        .filter(|(_, greeting)| greeting.is_none())
        .map(|(id, _)| id.to_string())
        .collect();
    if config.bootstrap {
        let silent = silent.join(", ");
        tracing::info!(
            silent,
            "waiting until every master of `peers` answers, to form the cluster"
        );
    } else {
        tracing::info!(
            id = config.id,
            "waiting to be taken in: form the cluster, or add this master with `atoll node add`"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: (u64, Incarnation) = (1, Incarnation([1; 16]));

    fn greeting(id: u64, formed: bool, standing: Standing) -> (u64, Option<Greeting>) {
        let incarnation = Incarnation([u8::try_from(id).unwrap_or(0); 16]);
        (id, Some(Greeting { id, incarnation, formed, standing }))
    }

    #[test]
    fn a_cluster_is_formed_once_all_answer_and_none_has_a_log() {
        let fresh = BTreeMap::from([
            greeting(2, false, Standing::Unknown),
            greeting(3, false, Standing::Unknown),
        ]);
        let Decision::Form(founders) = decide(OWN, true, &fresh) else {
            panic!("it is time to form the cluster");
        };
        assert_eq!(founders.keys().copied().collect::<Vec<u64>>(), [1, 2, 3]);
        assert_eq!(founders[&1], OWN.1);
        assert_eq!(decide(OWN, false, &fresh), Decision::Wait);
        let mut silent = fresh.clone();
        silent.insert(3, None);
        assert_eq!(decide(OWN, true, &silent), Decision::Wait);
        let mut formed = fresh;
        formed.extend([greeting(3, true, Standing::Unknown)]);
        assert_eq!(decide(OWN, true, &formed), Decision::Wait);
        assert!(matches!(decide(OWN, true, &BTreeMap::new()), Decision::Form(_)));
    }

    #[test]
    fn one_that_lost_its_log_is_refused_whoever_else_would_have_it() {
        let mut said = BTreeMap::from([
            greeting(2, true, Standing::Unknown),
            greeting(3, true, Standing::Admitted),
        ]);
        assert_eq!(decide(OWN, true, &said), Decision::Join);
        assert_eq!(decide(OWN, false, &said), Decision::Join);
        said.extend([greeting(2, true, Standing::Refused)]);
        assert_eq!(decide(OWN, true, &said), Decision::Refuse(2));
    }
}
