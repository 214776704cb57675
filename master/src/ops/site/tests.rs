//! Aliases over time: what they were, and their end.

#![allow(clippy::unwrap_used, reason = "tests")]

use atoll_proto::publish::{Alias, PublishEntry, PublishEvent, Published, SiteOp};
use atoll_proto::site::SiteChanges;
use atoll_proto::{AliasName, Code, DeployId, Seq, SiteName, WireError};

use crate::operation::Operation;
use crate::ops::tests::Machine;
use crate::store::{aliases, deploys, publish_log};

fn blog() -> SiteName {
    "blog".parse().unwrap()
}

fn pages(machine: &mut Machine, names: &[&str]) -> Vec<DeployId> {
    names.iter().map(|name| machine.page(name)).collect()
}

fn publish_for(
    machine: &mut Machine,
    alias: &str,
    deploy: DeployId,
    lifetime_secs: u64,
) -> Result<Published, WireError> {
    machine.site(SiteOp::PublishFor {
        site: blog(),
        alias: alias.parse().unwrap(),
        deploy,
        if_current: None,
        message: String::new(),
        create: true,
        lifetime_secs,
    })
}

fn move_to(machine: &mut Machine, alias: &str, deploy: Option<DeployId>) {
    let (site, alias) = (blog(), alias.parse().unwrap());
    machine.site(SiteOp::MoveAlias { site, alias, deploy, if_current: None }).unwrap();
}

fn alias(machine: &Machine, name: &str) -> Option<Alias> {
    let found = aliases::get(&machine.store.rocks, &blog(), &name.parse().unwrap()).unwrap();
    found.map(|record| record.alias)
}

fn earlier(machine: &Machine) -> Vec<DeployId> {
    let alias = alias(machine, "production").unwrap();
    let names: Vec<DeployId> = alias.earlier.iter().map(|earlier| earlier.deploy).collect();
    // Whatever is in a list is kept.
    for deploy in &names {
        assert!(deploys::get(&machine.store.rocks, &blog(), deploy).unwrap().is_some());
        assert!(machine.refs(deploy).unwrap().0 > 0);
    }
    assert_eq!(last(machine).event, PublishEvent::AliasSet(alias));
    names
}

fn log(machine: &Machine) -> Vec<PublishEntry> {
    publish_log::after(&machine.store.rocks, Seq(0), 999).unwrap().0
}

fn last(machine: &Machine) -> PublishEntry {
    log(machine).pop().unwrap()
}

#[test]
fn an_alias_tells_what_it_was() {
    let mut machine = Machine::new();
    let pages = pages(&mut machine, &["a", "b", "c"]);
    for page in &pages {
        machine.publish(*page, None).unwrap();
    }
    assert_eq!(earlier(&machine), [pages[1], pages[0]]);
    let was = alias(&machine, "production").unwrap().earlier;
    assert!(was[0].replaced_ms > was[1].replaced_ms);
    assert_eq!(was[0].replaced_ms, last(&machine).at_ms);
    // What is rolled away from may be open somewhere.
    move_to(&mut machine, "production", None);
    assert_eq!(earlier(&machine), [pages[2], pages[0]]);
    machine.publish(pages[1], None).unwrap();
    assert_eq!(earlier(&machine), [pages[2], pages[0]]);
    // The first alias of a site was nothing.
    move_to(&mut machine, "staging", Some(pages[0]));
    assert_eq!(alias(&machine, "staging").unwrap().earlier, []);
}

#[test]
fn the_setting_bounds_the_list_at_the_next_move() {
    let mut machine = Machine::new();
    let pages = pages(&mut machine, &["a", "b", "c", "d"]);
    for page in &pages[..3] {
        machine.publish(*page, None).unwrap();
    }
    let set = |count| {
        let changes = SiteChanges { earlier_count: Some(count), ..SiteChanges::default() };
        SiteOp::Configure { site: blog(), changes }
    };
    machine.site(set(1)).unwrap();
    machine.publish(pages[3], None).unwrap();
    assert_eq!(earlier(&machine), [pages[2]]);
    machine.site(set(0)).unwrap();
    machine.publish(pages[0], None).unwrap();
    assert_eq!(earlier(&machine), []);
}

#[test]
fn a_removed_deploy_leaves_every_list_in_the_same_entry() {
    let mut machine = Machine::new();
    let pages = pages(&mut machine, &["a", "b", "c"]);
    for page in &pages {
        machine.publish(*page, None).unwrap();
    }
    let before = alias(&machine, "production").unwrap();
    let (site, deploy) = (blog(), pages[0]);
    let removed = machine.site(SiteOp::RemoveDeploy { site, deploy }).unwrap();
    let after = alias(&machine, "production").unwrap();
    assert_eq!(after.earlier, before.earlier[..1]);
    assert_eq!((after.deploy, after.seq, after.at_ms), (before.deploy, before.seq, before.at_ms));
    let said: Vec<PublishEntry> = log(&machine).into_iter().rev().take(2).collect();
    assert_eq!(said[0].event, PublishEvent::DeployRemoved { site: blog(), deploy });
    assert_eq!(said[0].seq, removed.seq);
    assert_eq!(said[1].event, PublishEvent::AliasSet(after));
    assert_eq!(machine.refs(&deploy), Some((0, true)));
}

#[test]
fn an_alias_ends_by_the_clock_of_the_log_and_its_deploy_stays() {
    let mut machine = Machine::new();
    let pages = pages(&mut machine, &["a", "b"]);
    machine.publish(pages[0], None).unwrap();
    // A second passes with every entry.
    publish_for(&mut machine, "pr-7", pages[1], 3).unwrap();
    let set = alias(&machine, "pr-7").unwrap();
    assert_eq!(set.expires_ms, Some(set.at_ms + 3000));
    let expire = |machine: &mut Machine| {
        machine.apply(&[Operation::ExpireAliases]).remove(0).unwrap();
        alias(machine, "pr-7").is_some()
    };
    assert!(expire(&mut machine));
    assert!(expire(&mut machine));
    let entries = log(&machine).len();
    assert!(!expire(&mut machine));
    let name: AliasName = "pr-7".parse().unwrap();
    let removed = PublishEvent::AliasRemoved { site: blog(), alias: name };
    assert_eq!(last(&machine).event, removed);
    assert!(!expire(&mut machine), "once more changes nothing");
    assert_eq!(log(&machine).len(), entries + 1);
    assert!(alias(&machine, "production").is_some());
    assert!(deploys::get(&machine.store.rocks, &blog(), &pages[1]).unwrap().is_some());
}

#[test]
fn a_publish_says_the_end_anew_and_a_move_leaves_it() {
    let mut machine = Machine::new();
    let pages = pages(&mut machine, &["a", "b"]);
    machine.publish(pages[0], None).unwrap();
    publish_for(&mut machine, "pr-7", pages[0], 100).unwrap();
    publish_for(&mut machine, "pr-7", pages[1], 50).unwrap();
    let set = alias(&machine, "pr-7").unwrap();
    assert_eq!(set.expires_ms, Some(set.at_ms + 50_000));
    move_to(&mut machine, "pr-7", None);
    assert_eq!(alias(&machine, "pr-7").unwrap().expires_ms, set.expires_ms);
    let op = SiteOp::MoveAliasFor {
        site: blog(),
        alias: "pr-7".parse().unwrap(),
        deploy: Some(pages[1]),
        if_current: Some(Some(pages[0])),
        lifetime_secs: 9,
    };
    machine.site(op).unwrap();
    let moved = alias(&machine, "pr-7").unwrap();
    assert_eq!(moved.expires_ms, Some(moved.at_ms + 9000));
    let op = SiteOp::Publish {
        site: blog(),
        alias: "pr-7".parse().unwrap(),
        deploy: pages[0],
        if_current: None,
        message: String::new(),
        create: false,
    };
    machine.site(op).unwrap();
    assert_eq!(alias(&machine, "pr-7").unwrap().expires_ms, None);
}

#[test]
fn production_does_not_end_and_no_time_is_absurd() {
    let mut machine = Machine::new();
    let page = machine.page("a");
    let error = publish_for(&mut machine, "production", page, 9).unwrap_err();
    assert_eq!(error.code, Code::Invalid);
    for lifetime in [0, u64::MAX] {
        let error = publish_for(&mut machine, "pr-7", page, lifetime).unwrap_err();
        assert_eq!(error.code, Code::Invalid, "{lifetime}");
    }
    assert!(log(&machine).is_empty());
}
