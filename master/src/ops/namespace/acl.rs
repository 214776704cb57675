//! Access rules beyond the permission bits: POSIX access control lists (POSIX.1e draft 17, as
//! acl(5) describes them).
//!
//! A list is an extended attribute in the kernel's layout, which mounts check; here are the rules
//! by which lists and permission bits follow each other, and by which a directory's default list
//! becomes that of what is made in it. Lists that say no more than the bits are not kept.

use atoll_proto::namespace::HAS_XATTRS;
use atoll_proto::{InodeId, WireError};

use crate::operation::Apply;
use crate::store::inodes::Inode;
use crate::store::{Read, StoreError, Transaction, xattrs};

/// The attribute with the rules for an inode.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute with the rules for what is made in a directory.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";
/// The layout of both, in the first four bytes.
const VERSION: u32 = 2;
/// Most entries of a list: more than anybody writes, and they fit an attribute.
const ENTRIES_MAX: usize = 1000;

/// Tags of entries, as in the kernel's layout, in the order entries have.
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OF_FILE: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    /// Read 4, write 2, execute 1.
    bits: u16,
    /// Of a user or group; all ones otherwise.
    id: u32,
}

/// A valid list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// Reads and checks a list.
    pub(super) fn decode(bytes: &[u8]) -> Result<Acl, WireError> {
        let wrong = |rule: &str| Err(WireError::invalid(format!("an access control list {rule}")));
        let (head, rest) = bytes.split_at(bytes.len().min(4));
        if head != VERSION.to_le_bytes() || !rest.len().is_multiple_of(8) {
            return wrong("has an unknown layout");
        }
        if rest.len() / 8 > ENTRIES_MAX {
            return wrong("is too long");
        }
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte));
        let entries: Vec<Entry> = rest
            .chunks_exact(8)
            .map(|part| Entry {
                tag: u16::from(part[1]) << 8 | u16::from(part[0]),
                bits: u16::from(part[3]) << 8 | u16::from(part[2]),
                id: number(&part[4..8]),
            })
            .collect();
        let count = |tag: u16| entries.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP);
        let known = [OWNER, USER, GROUP_OF_FILE, GROUP, MASK, OTHERS];
        if entries.iter().any(|entry| !known.contains(&entry.tag) || entry.bits > 7) {
            return wrong("has an entry of an unknown kind");
        }
        if [OWNER, GROUP_OF_FILE, OTHERS].iter().any(|tag| count(*tag) != 1) {
            return wrong("must have one entry each for the owner, the group and others");
        }
        if count(MASK) > 1 || (named > 0 && count(MASK) == 0) {
            return wrong("that names users or groups must have one mask");
        }
        if !entries.is_sorted_by(|a, b| a.tag <= b.tag) {
            return wrong("has its entries in another order than the kernel's");
        }
        Ok(Acl { entries })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.tag.to_le_bytes());
            bytes.extend_from_slice(&entry.bits.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    /// Whether the permission bits say it all.
    fn is_minimal(&self) -> bool {
        self.entries.len() == 3
    }

    /// The bits of the only entry with a tag.
    fn bits(&self, tag: u16) -> Option<u32> {
        self.entries.iter().find(|entry| entry.tag == tag).map(|entry| u32::from(entry.bits))
    }

    fn set(&mut self, tag: u16, bits: u32) {
        for entry in self.entries.iter_mut().filter(|entry| entry.tag == tag) {
            // Three bits.
            entry.bits = (bits & 7) as u16;
        }
    }

    /// Which entry the group's permission bits show: the mask where there is one.
    fn group_class(&self) -> u16 {
        if self.bits(MASK).is_some() { MASK } else { GROUP_OF_FILE }
    }

    /// The nine permission bits that show this list.
    fn mode(&self) -> u32 {
        let bits = |tag| self.bits(tag).unwrap_or_default();
        bits(OWNER) << 6 | bits(self.group_class()) << 3 | bits(OTHERS)
    }

    /// Follows a change of the permission bits.
    fn follow(&mut self, mode: u32) {
        self.set(OWNER, mode >> 6);
        self.set(self.group_class(), mode >> 3);
        self.set(OTHERS, mode);
    }

    /// The mode and the list of something made with these permission bits in a directory with
    /// this default list: each may take from the other (acl(5), "Object creation and default
    /// ACLs").
    pub(super) fn for_new(&self, mode: u32) -> (u32, Acl) {
        let mut own = self.clone();
        own.follow(self.mode() & mode);
        (mode & !0o777 | own.mode(), own)
    }
}

/// A stored list, which was checked when it was set.
fn stored(name: &[u8], value: &[u8]) -> Result<Acl, StoreError> {
    Acl::decode(value).map_err(|error| StoreError::malformed(name, &error))
}

/// The rules a directory has for what is made in it.
pub(super) fn inherited(read: &impl Read, id: InodeId, holder: &Inode) -> Apply<Option<Acl>> {
    if !holder.has_xattrs() {
        return Ok(None);
    }
    let value = xattrs::get(read, id, DEFAULT)?;
    Ok(value.map(|value| stored(DEFAULT, &value)).transpose()?)
}

/// Gives a new inode its lists.
pub(super) fn give(
    tx: &mut Transaction<'_>,
    id: InodeId,
    made: &mut Inode,
    own: Acl,
    default: Option<Acl>,
) {
    if !own.is_minimal() {
        xattrs::put(tx, id, ACCESS, &own.encode());
        made.mode |= HAS_XATTRS;
    }
    if let Some(default) = default {
        xattrs::put(tx, id, DEFAULT, &default.encode());
        made.mode |= HAS_XATTRS;
    }
}

/// The permission bits were set: the list follows.
pub(super) fn follow_mode(tx: &mut Transaction<'_>, id: InodeId, found: &Inode) -> Apply<()> {
    if !found.has_xattrs() {
        return Ok(());
    }
    if let Some(value) = xattrs::get(tx, id, ACCESS)? {
        let mut acl = stored(ACCESS, &value)?;
        acl.follow(found.mode);
        xattrs::put(tx, id, ACCESS, &acl.encode());
    }
    Ok(())
}

/// A list is being set: the permission bits follow. Returns what to keep of it.
pub(super) fn set_access(found: &mut Inode, value: &[u8]) -> Result<Option<Vec<u8>>, WireError> {
    let acl = Acl::decode(value)?;
    found.set_permissions(found.mode & !0o777 | acl.mode());
    Ok((!acl.is_minimal()).then(|| acl.encode()))
}

#[cfg(test)]
pub(super) mod testing {
    use super::{Acl, Entry, GROUP, GROUP_OF_FILE, MASK, OTHERS, OWNER, USER};

    /// A list as setfacl makes it: for the owner, a named user, the group, a named group, the
    /// mask, others.
    pub(in super::super) fn named(bits: [u16; 6]) -> Vec<u8> {
        let tags = [OWNER, USER, GROUP_OF_FILE, GROUP, MASK, OTHERS];
        let entry = |(tag, bits)| {
            let id = if tag == USER || tag == GROUP { 1234 } else { u32::MAX };
            Entry { tag, bits, id }
        };
        Acl { entries: tags.into_iter().zip(bits).map(entry).collect() }.encode()
    }

    /// A list that the permission bits can say.
    pub(in super::super) fn minimal(bits: [u16; 3]) -> Vec<u8> {
        let tags = [OWNER, GROUP_OF_FILE, OTHERS];
        let entry = |(tag, bits)| Entry { tag, bits, id: u32::MAX };
        Acl { entries: tags.into_iter().zip(bits).map(entry).collect() }.encode()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::testing::{minimal, named};
    use super::*;

    #[test]
    fn lists_and_permission_bits_follow_each_other() {
        let mut acl = Acl::decode(&named([7, 6, 5, 4, 6, 1])).unwrap();
        assert_eq!(acl.mode(), 0o761, "the mask is what the group's bits show");
        acl.follow(0o640);
        assert_eq!(acl, Acl::decode(&named([6, 6, 5, 4, 4, 0])).unwrap());
        let mut acl = Acl::decode(&minimal([7, 5, 1])).unwrap();
        assert!(acl.is_minimal());
        acl.follow(0o640);
        assert_eq!(acl.encode(), minimal([6, 4, 0]));
    }

    #[test]
    fn what_is_made_gets_no_more_than_both_allow() {
        let default = Acl::decode(&named([7, 7, 5, 5, 7, 5])).unwrap();
        let (mode, own) = default.for_new(0o2664);
        assert_eq!(mode, 0o2664);
        assert_eq!(own, Acl::decode(&named([6, 7, 5, 5, 6, 4])).unwrap());
        let (mode, _) = Acl::decode(&minimal([7, 0, 0])).unwrap().for_new(0o666);
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn malformed_lists_are_refused() {
        let good = named([7, 7, 7, 7, 7, 7]);
        assert!(Acl::decode(&good).is_ok());
        let swapped = [&good[..4], &good[12..20], &good[4..12], &good[20..]].concat();
        let without_mask = [&good[..36], &good[44..]].concat();
        let without_owner = [&good[..4], &good[12..]].concat();
        let mut bits = good.clone();
        bits[6] = 8;
        let mut tag = good.clone();
        tag[4] = 3;
        let mut layout = good.clone();
        layout[0] = 1;
        for bad in
            [swapped, without_mask, without_owner, bits, tag, layout, vec![], good[..9].to_vec()]
        {
            assert!(Acl::decode(&bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Ok(acl) = Acl::decode(&bytes) {
                prop_assert_eq!(acl.encode(), bytes);
            }
        }
    }
}
