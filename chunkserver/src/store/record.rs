//! The record of one chunk and every way it may change: plain functions, used by all back ends,
//! so that they cannot disagree.
//!
//! Two things are known of a chunk: whether it is *live*, which the master says, and how its
//! *body* is, which is found out here. Everything else the store keeps follows from the two: see
//! [`Record::counts`], [`Record::is_lacking`] and [`Record::is_condemned`].

use atoll_proto::Epoch;

/// A present chunk that is put again gets a new time if the old one is older than this, in
/// milliseconds: so that a chunk which is needed again is young again, at no cost for each put.
pub(super) const REFRESH_AFTER_MS: u64 = 3_600_000;

/// How the bytes of a chunk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// There are none.
    Absent,
    /// They are here, as far as known in good order, and served.
    Present,
    /// They were found not to have the hash they are named by, and are not served. A good copy
    /// replaces them.
    Corrupt,
    /// They are not needed here, and kept for a while in case that is a mistake. Not served.
    Quarantined,
}

/// What the store knows of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Whether the master has it in its object table, as far as this node has heard.
    pub live: bool,
    /// How its bytes are.
    pub body: Body,
    /// Their length; 0 while there are none.
    pub len: u32,
    /// The latest placement epoch under which they were stored, or stored again.
    pub epoch: Epoch,
    /// When the body came to be as it is, or was last put; milliseconds since 1970.
    pub at_ms: u64,
}

/// What the master says of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It is in the object table.
    Live,
    /// It was taken out of the object table.
    Collected,
}

impl Record {
    /// Whether it is in the digest of its bucket: live, and here.
    pub fn counts(&self) -> bool {
        self.live && self.body == Body::Present
    }

    /// Whether it should be here in good order and is not.
    pub fn is_lacking(&self) -> bool {
        self.live && self.body != Body::Present
    }

    /// Whether its bytes are only waiting to be deleted.
    pub fn is_condemned(&self) -> bool {
        !self.live && matches!(self.body, Body::Corrupt | Body::Quarantined)
    }

    /// Whether there are bytes, good or bad.
    pub fn has_bytes(&self) -> bool {
        self.body != Body::Absent
    }

    /// Good bytes were stored.
    pub(super) fn put(old: Option<Self>, len: u32, epoch: Epoch, at_ms: u64) -> Self {
        let live = old.is_some_and(|old| old.live);
        // A copy made again is as new as what was acknowledged here.
        let epoch = old.map_or(epoch, |old| old.epoch.max(epoch));
        Self { live, body: Body::Present, len, epoch, at_ms }
    }

    /// A chunk that is present was put again; `None` if that changes nothing.
    pub(super) fn put_again(self, epoch: Epoch, at_ms: u64) -> Option<Self> {
        let old = self.at_ms.saturating_add(REFRESH_AFTER_MS) < at_ms;
        let at_ms = if old { at_ms } else { self.at_ms };
        // An erasure from before must not take what is acknowledged now.
        let epoch = self.epoch.max(epoch);
        (old || epoch > self.epoch).then_some(Self { epoch, at_ms, ..self })
    }

    /// Whether an erasure that was read when this was the placement epoch is about these bytes: they
    /// were not put after it was lifted.
    pub(super) fn is_erased_by(&self, epoch: Epoch) -> bool {
        self.epoch <= epoch
    }

    /// The master said this.
    pub(super) fn marked(old: Option<Self>, mark: Mark, now_ms: u64) -> Option<Self> {
        match (mark, old) {
            (Mark::Live, Some(old)) => Some(Self { live: true, ..old }),
            (Mark::Live, None) => Some(Self {
                live: true,
                body: Body::Absent,
                len: 0,
                epoch: Epoch(0),
                at_ms: now_ms,
            }),
            (Mark::Collected, None) => None,
            (Mark::Collected, Some(old)) => old.released(now_ms),
        }
    }

    /// The master does not have it in its object table, but never said that it was collected: it
    /// may be about to become live.
    pub(super) fn forgotten(self, now_ms: u64) -> Option<Self> {
        match self.body {
            Body::Absent if self.live => None,
            Body::Present | Body::Quarantined if self.live => {
                Some(Self { live: false, at_ms: now_ms, ..self })
            }
            Body::Absent | Body::Present | Body::Corrupt | Body::Quarantined => {
                Some(Self { live: false, ..self })
            }
        }
    }

    /// It is not needed here, for whatever reason.
    pub(super) fn released(self, now_ms: u64) -> Option<Self> {
        let rest = Self { live: false, ..self };
        match self.body {
            Body::Absent => None,
            Body::Present => Some(Self { body: Body::Quarantined, at_ms: now_ms, ..rest }),
            // It was needed until now: its time in quarantine begins anew.
            Body::Quarantined if self.live => Some(Self { at_ms: now_ms, ..rest }),
            Body::Corrupt | Body::Quarantined => Some(rest),
        }
    }

    /// It is present and nobody needs it; `None` if that is not so.
    pub(super) fn quarantined(self, now_ms: u64) -> Option<Self> {
        let unneeded = !self.live && self.body == Body::Present;
        unneeded.then_some(Self { body: Body::Quarantined, at_ms: now_ms, ..self })
    }

    /// The bytes were read and are good, or not.
    pub(super) fn examined(self, good: bool, now_ms: u64) -> Self {
        let body = if good { Body::Present } else { Body::Corrupt };
        Self { body, at_ms: now_ms, ..self }
    }
}

impl Body {
    /// Every one.
    pub(super) const ALL: [Self; 4] =
        [Self::Absent, Self::Present, Self::Corrupt, Self::Quarantined];

    /// Its number on disk.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Absent => 0,
            Self::Present => 1,
            Self::Corrupt => 2,
            Self::Quarantined => 3,
        }
    }

    /// The one with this number.
    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|body| body.code() == code)
    }
}
