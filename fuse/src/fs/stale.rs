//! Files of which the kernel has pages that are in another place now: what was appended behind bytes
//! that somebody else had appended before.
//!
//! Whoever reads on in an open file, or has it mapped, would see them where they never were. The next
//! open drops them, but these do not open it again. The kernel is told by a thread of its own, which
//! holds nothing: dropping a page waits for reads and writes of it that are under way, which wait
//! for the file system.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use atoll_proto::InodeId;

/// A queue of files, each at most once: no longer than there are open files.
#[derive(Debug, Default)]
pub struct Stale {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct State {
    inodes: BTreeSet<InodeId>,
    over: bool,
}

impl Stale {
    /// The kernel must drop the pages of this file.
    pub(super) fn add(&self, inode: InodeId) {
        let mut state = self.lock();
        if !state.over && state.inodes.insert(inode) {
            self.more.notify_one();
        }
    }

    /// The next file, waiting for one; `None` at the end. Blocks.
    pub fn next(&self) -> Option<InodeId> {
        let mut state = self.lock();
        loop {
            if state.over {
                return None;
            }
            if let Some(inode) = state.inodes.pop_first() {
                return Some(inode);
            }
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The mount is at its end.
    pub fn end(&self) {
        self.lock().over = true;
        self.more.notify_all();
    }

    /// Whether the kernel is still to be told of a file.
    #[cfg(test)]
    pub(crate) fn has(&self, inode: InodeId) -> bool {
        self.lock().inodes.contains(&inode)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;

    use super::*;

    #[test]
    fn each_file_comes_once_until_the_end() {
        let stale = Arc::new(Stale::default());
        for inode in [7, 8, 7] {
            stale.add(InodeId(inode));
        }
        assert_eq!(stale.next(), Some(InodeId(7)));
        assert_eq!(stale.next(), Some(InodeId(8)));
        let waits = stale.clone();
        let waiter = std::thread::spawn(move || waits.next());
        stale.end();
        assert_eq!(waiter.join().unwrap(), None);
        stale.add(InodeId(9));
        assert_eq!(stale.next(), None);
    }
}
