//! Random operations on the file system and on a map of vectors agree.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Act {
    /// Open (making it if needed), by handle slot.
    Open {
        slot: usize,
        name: u8,
        truncate: bool,
    },
    Write {
        slot: usize,
        offset: u64,
        data: Vec<u8>,
    },
    Append {
        slot: usize,
        data: Vec<u8>,
    },
    Read {
        slot: usize,
        offset: u64,
        len: u32,
    },
    Resize {
        slot: usize,
        size: u64,
    },
    ResizeByName {
        name: u8,
        size: u64,
    },
    Flush {
        slot: usize,
    },
    Close {
        slot: usize,
    },
    Unlink {
        name: u8,
    },
    Rename {
        from: u8,
        to: u8,
    },
    Link {
        from: u8,
        to: u8,
    },
    /// Look at everything through another mount after committing all.
    Compare,
}

const SLOTS: usize = 4;

fn act() -> impl Strategy<Value = Act> {
    let slot = 0..SLOTS;
    let name = 0..3_u8;
    let data = proptest::collection::vec(1_u8.., 1..50);
    prop_oneof![
        4 => (slot.clone(), name.clone(), prop::bool::weighted(0.2))
            .prop_map(|(slot, name, truncate)| Act::Open { slot, name, truncate }),
        6 => (slot.clone(), 0..100_u64, data.clone())
            .prop_map(|(slot, offset, data)| Act::Write { slot, offset, data }),
        2 => (slot.clone(), data).prop_map(|(slot, data)| Act::Append { slot, data }),
        3 => (slot.clone(), 0..150_u64, 0..80_u32)
            .prop_map(|(slot, offset, len)| Act::Read { slot, offset, len }),
        1 => (slot.clone(), 0..150_u64).prop_map(|(slot, size)| Act::Resize { slot, size }),
        1 => (name.clone(), 0..150_u64)
            .prop_map(|(name, size)| Act::ResizeByName { name, size }),
        2 => slot.clone().prop_map(|slot| Act::Flush { slot }),
        3 => slot.prop_map(|slot| Act::Close { slot }),
        1 => name.clone().prop_map(|name| Act::Unlink { name }),
        1 => (name.clone(), name.clone()).prop_map(|(from, to)| Act::Rename { from, to }),
        1 => (name.clone(), name).prop_map(|(from, to)| Act::Link { from, to }),
        1 => Just(Act::Compare),
    ]
}

/// The file system and what it should be.
struct Bed {
    fake: Arc<Fake>,
    fs: Fs,
    /// Name → file; file → content. Files without names stay while they are open.
    names: BTreeMap<u8, InodeId>,
    files: BTreeMap<InodeId, Vec<u8>>,
    slots: [Option<(u64, InodeId)>; SLOTS],
}

fn text(name: u8) -> ByteName {
    ByteName::from(format!("file-{name}").as_str())
}

impl Bed {
    fn model(&mut self, inode: InodeId) -> &mut Vec<u8> {
        self.files.get_mut(&inode).unwrap()
    }

    async fn act(&mut self, act: Act) {
        match act {
            Act::Open { slot, name, truncate } => self.open(slot, name, truncate).await,
            Act::Write { slot, offset, data } => {
                let Some((handle, inode)) = self.slots[slot] else {
                    return;
                };
                self.fs.write(handle, offset, &data, HERE).await.unwrap();
                let model = self.model(inode);
                let end = offset as usize + data.len();
                model.resize(model.len().max(end), 0);
                model[offset as usize..end].copy_from_slice(&data);
            }
            Act::Append { slot, data } => {
                let Some((handle, inode)) = self.slots[slot] else {
                    return;
                };
                self.fs.write(handle, 0, &data, APPEND).await.unwrap();
                self.model(inode).extend_from_slice(&data);
            }
            Act::Read { slot, offset, len } => {
                let Some((handle, inode)) = self.slots[slot] else {
                    return;
                };
                let bytes = self.fs.read(handle, offset, len).await.unwrap();
                let model = self.model(inode);
                let start = (offset as usize).min(model.len());
                let end = (start + len as usize).min(model.len());
                assert_eq!(bytes, model[start..end]);
            }
            Act::Resize { slot, size } => {
                let Some((handle, inode)) = self.slots[slot] else {
                    return;
                };
                let set = SetAttrs { size: Some(size), ..SetAttrs::default() };
                let attr = self.fs.setattr(inode, Some(handle), set).await.unwrap();
                assert_eq!(attr.size, size);
                self.model(inode).resize(size as usize, 0);
            }
            Act::ResizeByName { name, size } => {
                let Some(&inode) = self.names.get(&name) else {
                    return;
                };
                let set = SetAttrs { size: Some(size), ..SetAttrs::default() };
                self.fs.setattr(inode, None, set).await.unwrap();
                self.model(inode).resize(size as usize, 0);
                assert_eq!(self.fake.committed(inode).unwrap(), self.files[&inode]);
            }
            Act::Flush { slot } => {
                let Some((handle, inode)) = self.slots[slot] else {
                    return;
                };
                self.fs.flush(handle).await.unwrap();
                if self.names.values().any(|named| *named == inode) {
                    assert_eq!(self.fake.committed(inode).unwrap(), self.files[&inode]);
                }
            }
            Act::Close { slot } => self.close(slot).await,
            Act::Unlink { name } => {
                let outcome = self.fs.unlink(ROOT, text(name)).await;
                assert_eq!(outcome.is_ok(), self.names.remove(&name).is_some());
            }
            Act::Rename { from, to } => {
                let replace = RenameMode::Replace;
                let outcome = self.fs.rename(ROOT, text(from), ROOT, text(to), replace).await;
                let inode = self.names.get(&from).copied();
                assert_eq!(outcome.is_ok(), inode.is_some());
                if let Some(inode) = inode
                    && self.names.get(&to) != Some(&inode)
                {
                    self.names.remove(&from);
                    self.names.insert(to, inode);
                }
            }
            Act::Link { from, to } => {
                let Some(&inode) = self.names.get(&from) else {
                    return;
                };
                let outcome = self.fs.link(inode, ROOT, text(to)).await;
                assert_eq!(outcome.is_ok(), !self.names.contains_key(&to));
                self.names.entry(to).or_insert(inode);
            }
            Act::Compare => self.compare().await,
        }
    }

    async fn open(&mut self, slot: usize, name: u8, truncate: bool) {
        self.close(slot).await;
        let how = OpenHow { write: true, truncate, outsider: false };
        // As the kernel does it: look first.
        let handle = match self.fs.lookup(ROOT, text(name)).await {
            Ok(attr) => {
                assert_eq!(self.names[&name], attr.inode);
                assert_eq!(attr.size, self.files[&attr.inode].len() as u64);
                if truncate {
                    self.model(attr.inode).clear();
                }
                (self.fs.open(attr.inode, how).await.unwrap().handle, attr.inode)
            }
            Err(_) => {
                assert!(!self.names.contains_key(&name));
                let (attr, opened) =
                    self.fs.create(ROOT, text(name), PLAIN, ME, true, how).await.unwrap();
                self.names.insert(name, attr.inode);
                self.files.insert(attr.inode, Vec::new());
                (opened.handle, attr.inode)
            }
        };
        self.slots[slot] = Some(handle);
    }

    async fn close(&mut self, slot: usize) {
        if let Some((handle, _)) = self.slots[slot].take() {
            self.fs.flush(handle).await.unwrap();
            self.fs.release(handle);
        }
    }

    async fn compare(&mut self) {
        assert_eq!(self.fs.flush_all().await, 0);
        let other = fs(&self.fake);
        let handle = other.opendir(ROOT);
        let listed = other.readdir(handle, 0).await.unwrap();
        assert_eq!(listed.len(), 2 + self.names.len());
        for (name, inode) in &self.names {
            let name = text(*name).lossy().into_owned();
            assert_eq!(load(&other, &name).await, self.files[inode]);
            let links = self.names.values().filter(|named| *named == inode).count();
            assert_eq!(self.fs.getattr(*inode).await.unwrap().nlink as usize, links);
        }
    }
}

proptest! {
    #[test]
    fn any_operations_equal_a_map_of_vectors(
        acts in proptest::collection::vec(act(), 1..60),
    ) {
        run(async {
            let fake = Fake::new();
            let fs = fs(&fake);
            let mut bed = Bed {
                fake,
                fs,
                names: BTreeMap::new(),
                files: BTreeMap::new(),
                slots: [None; SLOTS],
            };
            for act in acts {
                bed.act(act).await;
            }
            bed.compare().await;
            for slot in 0..SLOTS {
                bed.close(slot).await;
            }
            // Uploads of files that are gone may still be ending.
            while bed.fs.unsent_bytes() > 0 {
                tokio::task::yield_now().await;
            }
        });
    }
}
