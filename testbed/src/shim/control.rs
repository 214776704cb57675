//! What a machine's clocks show and how slow its disk is, in a file that two processes map: the
//! testbed writes, a node with `testbed/shim` loaded into it reads. Both compile this file.
//!
//! One writer at a time; readers take no lock and allocate nothing.
//! A reader looks at the kernel's clock between two looks at the sequence number, and the writer
//! between making it odd and even: so every reading belongs to what was in force when it was
//! taken, and no clock goes back when its rate changes.

#![allow(unsafe_code, reason = "a mapped file is memory that another process changes")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

/// The environment variable that names the file, or the folder in which each node has one of its
/// own name.
pub(crate) const VARIABLE: &str = "ATOLL_SHIM";
/// Of the mapping: room to grow.
pub(crate) const FILE_BYTES: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"atollclk");
const VERSION: u32 = 1;
const MILLION: i64 = 1_000_000;
/// The slowest clock: one that stood still would never show the end of a wait.
const PPM_MIN: i64 = -999_000;
const PPM_MAX: i64 = 1_000_000_000;
/// Looks at an odd sequence number, with a pause each, before the writer is taken for dead.
const LOOKS_MAX: u32 = 20_000_000;

const _: () = assert!(size_of::<Control>() <= FILE_BYTES);

/// A clock that never goes back: what it shows from a moment on, and how fast it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    /// The kernel's clock at that moment, in nanoseconds.
    pub(crate) from_ns: i64,
    /// What this one shows then.
    pub(crate) shows_ns: i64,
    /// How much faster than the kernel's it runs from then on, in millionths.
    pub(crate) ppm: i64,
}

impl Line {
    /// The kernel's own.
    pub(crate) const TRUE: Self = Self { from_ns: 0, shows_ns: 0, ppm: 0 };

    /// What it shows at a time of the kernel's clock. Before its beginning it stands: a coarse
    /// clock of the kernel may be a little behind the exact one.
    pub(crate) fn shown(self, kernel_ns: i64) -> i64 {
        let passed = kernel_ns.saturating_sub(self.from_ns).max(0);
        // Without the product of nanoseconds and millionths, which 64 bits do not hold.
        let whole = (passed / MILLION).saturating_mul(self.ppm);
        let rest = (passed % MILLION * self.ppm).div_euclid(MILLION);
        self.shows_ns.saturating_add(passed).saturating_add(whole).saturating_add(rest)
    }

    /// From when on, by the kernel's clock, it shows this time or a later one.
    pub(crate) fn kernel(self, shown_ns: i64) -> i64 {
        let ahead = i128::from(shown_ns) - i128::from(self.shows_ns);
        let million = i128::from(MILLION);
        let rate = million + i128::from(self.ppm);
        let passed = (ahead.max(0) * million + rate - 1) / rate;
        self.from_ns.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
    }

    /// The same until now, and from now on at this rate.
    #[must_use]
    pub(crate) fn at_rate(self, kernel_ns: i64, ppm: i64) -> Self {
        let shows_ns = self.shown(kernel_ns);
        Self { from_ns: kernel_ns, shows_ns, ppm: ppm.clamp(PPM_MIN, PPM_MAX) }
    }

    /// The same until now, and from now on so much further.
    #[must_use]
    pub(crate) fn moved(self, kernel_ns: i64, by_ns: i64) -> Self {
        let shows_ns = self.shown(kernel_ns).saturating_add(by_ns);
        Self { from_ns: kernel_ns, shows_ns, ..self }
    }
}

/// What is odd about a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    /// `CLOCK_BOOTTIME`.
    pub(crate) boot: Line,
    /// `CLOCK_MONOTONIC`.
    pub(crate) monotonic: Line,
    /// How far `CLOCK_REALTIME` is ahead of the kernel's, in nanoseconds.
    pub(crate) wall_ns: i64,
    /// How much longer a sync takes, in nanoseconds.
    pub(crate) sync_ns: i64,
}

const WORDS: usize = 8;

impl Machine {
    /// As it is.
    pub(crate) const TRUE: Self =
        Self { boot: Line::TRUE, monotonic: Line::TRUE, wall_ns: 0, sync_ns: 0 };

    fn words(self) -> [i64; WORDS] {
        let Self { boot, monotonic, wall_ns, sync_ns } = self;
        let (from, shows) = (boot.from_ns, boot.shows_ns);
        let then = [monotonic.from_ns, monotonic.shows_ns, monotonic.ppm, wall_ns, sync_ns];
        let [a, b, c, d, e] = then;
        [from, shows, boot.ppm, a, b, c, d, e]
    }

    fn of_words(words: [i64; WORDS]) -> Self {
        let [from_ns, shows_ns, ppm, a, b, c, wall_ns, sync_ns] = words;
        let boot = Line { from_ns, shows_ns, ppm };
        let monotonic = Line { from_ns: a, shows_ns: b, ppm: c };
        Self { boot, monotonic, wall_ns, sync_ns }
    }
}

/// The file.
#[repr(C)]
pub(crate) struct Control {
    magic: AtomicU64,
    version: AtomicU32,
    /// Odd while the rest is being changed.
    sequence: AtomicU32,
    words: [AtomicI64; WORDS],
    /// The process that reads it; 0 if none has begun to.
    reader: AtomicU32,
    _reserved: AtomicU32,
    /// Syncs that took longer.
    syncs: AtomicU64,
}

impl Control {
    /// Writes an empty file of [`FILE_BYTES`] as that of a machine in order, and maps it.
    pub(crate) fn create(file: &File) -> io::Result<&'static Self> {
        file.set_len(FILE_BYTES as u64)?;
        let control = Self::map(file)?;
        control.change(|_| Machine::TRUE);
        control.version.store(VERSION, Ordering::Release);
        control.magic.store(MAGIC, Ordering::Release);
        Ok(control)
    }

    /// Maps a file that was created.
    pub(crate) fn open(file: &File) -> io::Result<&'static Self> {
        if file.metadata()?.len() < FILE_BYTES as u64 {
            return Err(io::Error::other("it is too short"));
        }
        let control = Self::map(file)?;
        let (magic, version) = (&control.magic, &control.version);
        if magic.load(Ordering::Acquire) != MAGIC || version.load(Ordering::Acquire) != VERSION {
            return Err(io::Error::other("it is of another version"));
        }
        Ok(control)
    }

    /// For the life of the process: a page for each machine.
    fn map(file: &File) -> io::Result<&'static Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let (anywhere, fd) = (std::ptr::null_mut(), file.as_raw_fd());
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that is there.
        let page = unsafe { libc::mmap(anywhere, FILE_BYTES, access, libc::MAP_SHARED, fd, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping is never undone, is as long as the file, begins at a page, and has
        // nothing but atomics in it, for which every value is valid.
        Ok(unsafe { &*page.cast::<Self>() })
    }

    /// Looks at what is in force; whatever `look` reads belongs to that. It may run several times.
    pub(crate) fn with<T>(&self, look: impl Fn(&Machine) -> T) -> T {
        for _ in 0..LOOKS_MAX {
            let before = self.sequence.load(Ordering::Acquire);
            if before & 1 == 1 {
                std::thread::yield_now();
                continue;
            }
            let words = std::array::from_fn(|at| self.words[at].load(Ordering::Relaxed));
            let found = look(&Machine::of_words(words));
            fence(Ordering::SeqCst);
            if self.sequence.load(Ordering::Relaxed) == before {
                return found;
            }
        }
        // Nobody could tell what time it is.
        std::process::abort()
    }

    /// Changes what is in force. Only one thread of one process may at a time; within `change`
    /// the kernel's clock is to be read.
    pub(crate) fn change(&self, change: impl FnOnce(Machine) -> Machine) {
        let before = self.sequence.load(Ordering::Relaxed) & !1;
        self.sequence.store(before.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let words = std::array::from_fn(|at| self.words[at].load(Ordering::Relaxed));
        let words = change(Machine::of_words(words)).words();
        for (word, value) in self.words.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        self.sequence.store(before.wrapping_add(2), Ordering::Release);
    }

    /// This process reads it from now on.
    pub(crate) fn begin(&self) {
        self.reader.store(std::process::id(), Ordering::Release);
    }

    /// The process that reads it.
    pub(crate) fn reader(&self) -> u32 {
        self.reader.load(Ordering::Acquire)
    }

    /// A sync took longer.
    pub(crate) fn count_sync(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    /// How many did.
    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}
