//! Admit: manifest pages and list chunks become part of the object table, each counting its
//! children once, however many manifests share it.
//!
//! Data chunks may be admitted too: an upload makes known what it has sent so far, so that it can
//! be resumed. They have no children and are not read.
//!
//! The leader reads each page that is not admitted yet from the chunkservers, verifies and
//! decodes it, and logs its children; applying checks them again and counts.

use std::collections::{BTreeMap, HashMap, HashSet};

use atoll_net::Context;
use atoll_proto::content::ExtentList;
use atoll_proto::error::WireResult;
use atoll_proto::manifest::Page;
use atoll_proto::master::{AdmitPage, Changed, ObjectKind};
use atoll_proto::receipt::Receipt;
use atoll_proto::{ChunkId, Code, Content, DeployId, Retry, SessionId, WireError, limits};
use bytes::Bytes;

use super::change::{Prepared, store_failed};
use super::erased::{check_below, refusal};
use super::namespace::content;
use crate::cover::Checker;
use crate::operation::{
    Admission, AdmittedPage, Apply, Child, Covered, Failure, LoggedChange, Now, Operation, Outcome,
    RootFacts,
};
use crate::server::Master;
use crate::store::{Read, StoreError, Transaction, below, erased, objects};

/// Most pages in one request.
const PAGES_MAX: usize = 8192;
/// Pages read at a time, so that memory stays bounded.
const READ_AT_ONCE: usize = 64;
/// Children in one log entry, about: 40 bytes each.
const CHILDREN_PER_ENTRY: usize = 12_000;

pub(crate) async fn prepare(
    master: &Master,
    context: &Context,
    session: SessionId,
    pages: &[AdmitPage],
    receipts: &[Receipt],
) -> WireResult<Prepared> {
    if pages.len() > PAGES_MAX {
        let message = format!("{} pages in one admission; send at most {PAGES_MAX}", pages.len());
        return Err(WireError { retry: Retry::Never, ..WireError::new(Code::Limit, message) });
    }
    let checker = Checker {
        key: master.receipt_key()?,
        session,
        now_ms: crate::server::now_ms(),
        table: master.cover_table()?,
    };
    let state = master.consensus.state();
    let counts = |id: &ChunkId, epoch| erased::admits_receipt(&*state, id, epoch);
    let covered = checker.covered(receipts, counts).map_err(store_failed)?;
    let covered: HashMap<ChunkId, u32> = covered.into_iter().map(|it| (it.id, it.len)).collect();

    let new = new_pages(master, pages)?;
    let missing = missing_pages(master, &new, &covered)?;
    if !missing.is_empty() {
        return Ok(Prepared::Missing(missing));
    }
    let mut admitted = Vec::with_capacity(new.len());
    for part in new.chunks(READ_AT_ONCE) {
        let read = part.iter().filter(|page| page.kind != ObjectKind::Data);
        let ids: Vec<ChunkId> = read.map(|page| page.id).collect();
        let bytes = master.read_chunks(&ids, context.deadline).await?;
        for page in part {
            if page.kind == ObjectKind::Data {
                let len = covered.get(&page.id).copied().unwrap_or_default();
                let (id, kind) = (page.id, page.kind);
                admitted.push(AdmittedPage { id, len, kind, children: Vec::new() });
                continue;
            }
            let bytes = bytes.get(&page.id).cloned().unwrap_or_default();
            admitted.push(read_page(page, &bytes)?);
        }
    }
    let missing = missing_children(master, &admitted, &covered)?;
    if !missing.is_empty() {
        return Ok(Prepared::Missing(missing));
    }
    let mut parts = split(admitted, &covered);
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let operation = Operation::AdmitPart(part);
        let outcome = master.consensus.propose(&operation, context.deadline).await?;
        if let Outcome::Changed { reply: Changed::Missing { ids }, .. } = outcome {
            return Ok(Prepared::Missing(ids));
        }
    }
    Ok(Prepared::Log(LoggedChange::Admit(last)))
}

/// The pages that are not admitted yet, each once; and for those that are, the chunks below them
/// that were erased, and may and have to be uploaded again: nobody else would ask for them.
fn new_pages(master: &Master, pages: &[AdmitPage]) -> WireResult<Vec<AdmitPage>> {
    let state = master.consensus.state();
    let mut seen = HashSet::new();
    let mut new = Vec::new();
    for page in pages {
        let known = objects::get(&*state, &page.id).map_err(store_failed)?;
        let absent = erased::is_absent(&*state, &page.id).map_err(store_failed)?;
        // Data has no children to count: whatever is in the table may be referred to as data.
        let admitted =
            known.is_some_and(|object| object.kind == page.kind || page.kind == ObjectKind::Data);
        if !admitted || absent {
            new.extend(seen.insert(page.id).then_some(*page));
        } else if page.kind != ObjectKind::Data {
            match check_below(&*state, &page.id, || format!("page {} is incomplete", page.id)) {
                Ok(()) => {}
                Err(Failure::Missing(ids)) => {
                    let ids = ids.into_iter().filter(|id| seen.insert(*id));
                    new.extend(ids.map(|id| AdmitPage { id, kind: ObjectKind::Data }));
                }
                // Whoever publishes it is refused; a live site may go on.
                Err(Failure::Refused(_)) => {}
                Err(Failure::Store(error)) => return Err(store_failed(error)),
            }
        }
    }
    Ok(new)
}

fn missing_pages(
    master: &Master,
    pages: &[AdmitPage],
    covered: &HashMap<ChunkId, u32>,
) -> WireResult<Vec<ChunkId>> {
    let state = master.consensus.state();
    let mut missing = Vec::new();
    for page in pages {
        if !covered.contains_key(&page.id) && !is_there(&*state, &page.id).map_err(store_failed)? {
            missing.push(page.id);
        }
    }
    Ok(missing)
}

/// The children that are neither known, nor covered, nor pages admitted together with these.
fn missing_children(
    master: &Master,
    pages: &[AdmittedPage],
    covered: &HashMap<ChunkId, u32>,
) -> WireResult<Vec<ChunkId>> {
    let state = master.consensus.state();
    let together: HashSet<ChunkId> = pages.iter().map(|page| page.id).collect();
    let mut seen = HashSet::new();
    let mut missing = Vec::new();
    for child in pages.iter().flat_map(|page| &page.children) {
        if !covered.contains_key(&child.id)
            && !together.contains(&child.id)
            && seen.insert(child.id)
            && !is_there(&*state, &child.id).map_err(store_failed)?
        {
            missing.push(child.id);
        }
    }
    missing.truncate(limits::IDS_MAX);
    Ok(missing)
}

/// Whether the cluster has a chunk, as far as the object table says.
fn is_there(read: &impl Read, id: &ChunkId) -> Result<bool, StoreError> {
    Ok(objects::has(read, id)? && !erased::is_absent(read, id)?)
}

/// Cuts an admission into log entries of bounded size, each with the cover it needs.
fn split(pages: Vec<AdmittedPage>, covered: &HashMap<ChunkId, u32>) -> Vec<Admission> {
    let mut parts: Vec<Admission> = Vec::new();
    let mut part = Admission::default();
    let mut children = 0;
    for page in pages {
        children += page.children.len() + 1;
        part.pages.push(page);
        if children >= CHILDREN_PER_ENTRY {
            parts.push(std::mem::take(&mut part));
            children = 0;
        }
    }
    if !part.pages.is_empty() || parts.is_empty() {
        parts.push(part);
    }
    for part in &mut parts {
        let children = part.pages.iter().flat_map(|page| &page.children).map(|child| child.id);
        let ids = part.pages.iter().map(|page| page.id).chain(children);
        let cover: BTreeMap<ChunkId, u32> =
            ids.filter_map(|id| Some((id, *covered.get(&id)?))).collect();
        part.covered = cover.into_iter().map(|(id, len)| Covered { id, len }).collect();
    }
    parts
}

/// The chunks that a page or list refers to, each once.
///
/// # Errors
/// When the bytes are not what the kind says.
pub(crate) fn children(id: ChunkId, kind: ObjectKind, bytes: &Bytes) -> WireResult<Vec<Child>> {
    Ok(read_page(&AdmitPage { id, kind }, bytes)?.children)
}

/// Decodes a page and lists its children.
fn read_page(page: &AdmitPage, bytes: &Bytes) -> WireResult<AdmittedPage> {
    let malformed = |error: atoll_proto::Malformed| {
        WireError::invalid(format!("chunk {} is not what it is said to be: {error}", page.id))
    };
    let references = match page.kind {
        ObjectKind::Page => page_references(&Page::decode(bytes).map_err(malformed)?),
        ObjectKind::List => {
            let extents = ExtentList::decode(bytes).map_err(malformed)?;
            let content = Content::from_extents(extents);
            references(&content).collect()
        }
        ObjectKind::Data => Vec::new(),
    };
    let mut children: BTreeMap<ChunkId, Child> = BTreeMap::new();
    for child in references {
        let same = children.insert(child.id, child).is_none_or(|before| before == child);
        if !same || child.len == 0 || child.len > limits::CHUNK_BYTES_MAX {
            let message = format!(
                "page {} refers to chunk {} with a wrong length or in two ways",
                page.id, child.id
            );
            return Err(WireError::invalid(message));
        }
    }
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let children = children.into_values().collect();
    Ok(AdmittedPage { id: page.id, len, kind: page.kind, children })
}

fn page_references(page: &Page) -> Vec<Child> {
    let page_child = |child: &atoll_proto::manifest::Child| Child {
        id: child.id,
        len: child.len,
        kind: ObjectKind::Page,
    };
    match page {
        Page::RootV1(root) => {
            let rules = root.rules.iter().flat_map(references);
            root.top.iter().map(page_child).chain(rules).collect()
        }
        Page::IndexV1(children) => children.iter().map(page_child).collect(),
        Page::LeafV1(entries) => {
            let contents = entries.iter().flat_map(|entry| {
                let variants = entry.variants.iter().map(|variant| &variant.content);
                std::iter::once(&entry.content).chain(variants)
            });
            contents.flat_map(references).collect()
        }
    }
}

fn references(content: &Content) -> impl Iterator<Item = Child> + use<> {
    let (kind, chunks) = content::chunks(content);
    chunks.into_iter().map(move |(id, len)| Child { id, len, kind })
}

/// What the root page of a manifest says about the whole. Only a chunk that is an admitted root
/// page has facts.
pub(crate) async fn root_facts(
    master: &Master,
    context: &Context,
    deploy: DeployId,
) -> WireResult<RootFacts> {
    let state = master.consensus.state();
    let known = objects::get(&*state, &deploy).map_err(store_failed)?;
    if known.is_none_or(|object| object.kind != ObjectKind::Page) {
        let message = format!(
            "deploy {deploy} cannot be published: its root page is not admitted; upload and \
             admit its pages first"
        );
        return Err(WireError::invalid(message));
    }
    let bytes = master.read_chunks(&[deploy], context.deadline).await?;
    let bytes = bytes.get(&deploy).cloned().unwrap_or_default();
    match Page::decode(&bytes) {
        Ok(Page::RootV1(root)) => Ok(RootFacts { files: root.files, bytes: root.bytes }),
        _ => {
            let message = format!("chunk {deploy} is not the root page of a manifest");
            Err(WireError::invalid(message))
        }
    }
}

/// Adds pages to the object table, in order. A page that is there already counts nothing again.
pub(crate) fn apply(tx: &mut Transaction<'_>, now: Now, admission: &Admission) -> Apply<()> {
    let covered: HashMap<ChunkId, u32> =
        admission.covered.iter().map(|chunk| (chunk.id, chunk.len)).collect();
    for page in &admission.pages {
        if erased::is_refused(tx, &page.id)? {
            return Err(refusal(&page.id, "a chunk may not be stored").into());
        }
        if erased::is_absent(tx, &page.id)? {
            // Erased once, and allowed again: it has to be uploaded, and was.
            if !covered.contains_key(&page.id) {
                return Err(Failure::Missing(vec![page.id]));
            }
            if objects::has(tx, &page.id)? {
                objects::show(tx, now, &page.id)?;
            }
        }
        match objects::get(tx, &page.id)? {
            Some(known) if known.kind == page.kind || page.kind == ObjectKind::Data => continue,
            Some(known) if known.kind != ObjectKind::Data => {
                let message = format!("chunk {} is both a page and a list", page.id);
                return Err(WireError::invalid(message).into());
            }
            Some(_) => {}
            None if covered.contains_key(&page.id) => {}
            None => return Err(Failure::Missing(vec![page.id])),
        }
        check_children(tx, page, &covered)?;
        inherit(tx, page)?;
        for child in &page.children {
            objects::add_ref(tx, now, &child.id, child.len, child.kind)?;
        }
        objects::set_kind(tx, now, &page.id, page.len, page.kind)?;
    }
    Ok(())
}

/// A page over pages below which something was erased leads to that as well. It may be made, since
/// what it names for itself is there; a deploy of it is refused unless a live site is sealed.
fn inherit(tx: &mut Transaction<'_>, page: &AdmittedPage) -> Apply<()> {
    let mut lost = Vec::new();
    for child in &page.children {
        if below::has(tx, &child.id)? || erased::get(tx, &child.id)?.is_some() {
            lost.push(child.id);
        }
    }
    if lost.is_empty() { Ok(()) } else { Ok(below::add(tx, &page.id, &lost)?) }
}

fn check_children(
    read: &impl Read,
    page: &AdmittedPage,
    covered: &HashMap<ChunkId, u32>,
) -> Apply<()> {
    let mut missing = Vec::new();
    for child in &page.children {
        if erased::is_refused(read, &child.id)? {
            let what = format!("a file of page {} may not be stored", page.id);
            return Err(refusal(&child.id, &what).into());
        }
        if child.kind == ObjectKind::List {
            check_below(read, &child.id, || {
                format!("a file of page {} may not be stored", page.id)
            })?;
        }
        let known = objects::get(read, &child.id)?;
        let known = if erased::is_absent(read, &child.id)? { None } else { known };
        let len = match &known {
            Some(object) => object.len,
            None => match covered.get(&child.id) {
                Some(len) => *len,
                None => {
                    missing.push(child.id);
                    continue;
                }
            },
        };
        let wrong = |what: String| {
            WireError::invalid(format!("page {} refers to chunk {}, {what}", page.id, child.id))
        };
        if len != child.len {
            let what = format!("which has {len} bytes, not {}", child.len);
            return Err(wrong(what).into());
        }
        let admitted = known.is_some_and(|object| object.kind == child.kind);
        if child.kind != ObjectKind::Data && !admitted {
            let what = "which must be admitted before it: send leaves first, the root last";
            return Err(wrong(what.to_owned()).into());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    missing.truncate(content::MISSING_MAX);
    Err(Failure::Missing(missing))
}
