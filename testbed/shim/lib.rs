//! A library that `LD_PRELOAD` puts into a process: its clocks then show, and its syncs take, what
//! a control file says (`testbed/src/shim/control.rs`). The testbed loads it into the nodes of
//! clusters whose clocks and disks it wants to be odd (`testbed/src/shim`); the product knows
//! nothing of it.
//!
//! It stands before `clock_gettime`, `gettimeofday` and `time`; before waits until a time of a clock
//! (the futex calls of the standard library, conditions, `clock_nanosleep`), which it tells to the
//! kernel by the kernel's clock; and before `fsync`, `fdatasync` and `sync_file_range`. Without a
//! file of its own a process (such as `atoll dev`) gets everything unchanged.
//!
//! Not changed: waits for a length of time (`epoll_wait`, `nanosleep`), which are as long as by the
//! kernel's clock: who finds that it woke early by its own waits again. Waits that are under way
//! when a clock changes end when they would have. Threads' CPU clocks, times of files.

#![cfg(all(
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
#![allow(unsafe_code, reason = "functions of the C library are replaced")]

#[allow(dead_code, reason = "the half that writes is the testbed's")]
#[path = "../src/shim/control.rs"]
mod control;

use std::ffi::{CStr, OsStr, c_char, c_int, c_long, c_void};
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{clockid_t, off64_t, pthread_cond_t, pthread_mutex_t, time_t, timespec, timeval};

use control::{Control, Machine};

const SECOND: i64 = 1_000_000_000;

// ---- what it goes by

/// Null: everything is unchanged.
static CONTROL: AtomicPtr<Control> = AtomicPtr::new(ptr::null_mut());

fn control() -> Option<&'static Control> {
    // SAFETY: null, or what `begin` got for the life of the process.
    unsafe { CONTROL.load(Ordering::Acquire).cast_const().as_ref() }
}

/// The C library calls it before `main`, with what `main` gets.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn(c_int, *const *const c_char) = begin;

extern "C" fn begin(count: c_int, arguments: *const *const c_char) {
    let Some(place) = std::env::var_os(control::VARIABLE) else { return };
    let word = |at: usize| {
        // SAFETY: `count` texts are there for the life of the process.
        unsafe { CStr::from_ptr(*arguments.add(at)) }.to_bytes()
    };
    let words = (1..usize::try_from(count).unwrap_or_default()).map(word);
    let Some(path) = file_of(Path::new(&place), words) else { return };
    match File::options().read(true).write(true).open(&path).and_then(|file| Control::open(&file)) {
        Ok(control) => {
            control.begin();
            CONTROL.store(ptr::from_ref(control).cast_mut(), Ordering::Release);
        }
        Err(error) => {
            // As if it were not there would be a test of nothing.
            eprintln!("{}: {error}", path.display());
            std::process::abort();
        }
    }
}

/// The file itself, or the one in the folder whose name is in an argument as a part of a path,
/// whatever it ends in: a node is started with the path of its configuration, `…/edge-1.toml`.
fn file_of<'a>(place: &Path, words: impl Iterator<Item = &'a [u8]>) -> Option<PathBuf> {
    if !place.is_dir() {
        return Some(place.to_owned());
    }
    let parts = words.flat_map(|word| word.split(|byte| *byte == b'/'));
    let names = parts.filter_map(|part| part.split(|byte| *byte == b'.').next());
    let names = names.filter(|name| !name.is_empty());
    let paths = names.map(|name| place.join(OsStr::from_bytes(name)));
    paths.filter(|path| path.is_file()).last()
}

// ---- what it stands before

/// A function of the C library.
struct Real {
    name: &'static CStr,
    /// The oldest version that behaves as today's, where there are several.
    version: Option<&'static CStr>,
    at: AtomicPtr<c_void>,
}

impl Real {
    const fn new(name: &'static CStr) -> Self {
        Self { name, version: None, at: AtomicPtr::new(ptr::null_mut()) }
    }

    const fn versioned(name: &'static CStr, version: &'static CStr) -> Self {
        Self { name, version: Some(version), at: AtomicPtr::new(ptr::null_mut()) }
    }

    fn get(&self) -> *mut c_void {
        let mut at = self.at.load(Ordering::Relaxed);
        if at.is_null() {
            let (name, next) = (self.name.as_ptr(), libc::RTLD_NEXT);
            if let Some(version) = self.version {
                // SAFETY: both texts end with a zero.
                at = unsafe { libc::dlvsym(next, name, version.as_ptr()) };
            }
            if at.is_null() {
                // SAFETY: as above.
                at = unsafe { libc::dlsym(next, name) };
            }
            if at.is_null() {
                std::process::abort();
            }
            self.at.store(at, Ordering::Relaxed);
        }
        at
    }
}

/// The function of this name as the next library has it.
macro_rules! real {
    ($real:expr, $kind:ty) => {{
        static REAL: Real = $real;
        // SAFETY: the C library documents the function of this name so.
        unsafe { std::mem::transmute::<*mut c_void, $kind>(REAL.get()) }
    }};
}

// ---- clocks

/// A clock that is changed.
#[derive(Clone, Copy)]
enum Clock {
    Boot,
    Monotonic,
    Wall,
}

impl Clock {
    fn of(id: clockid_t) -> Option<Self> {
        match id {
            libc::CLOCK_BOOTTIME => Some(Self::Boot),
            libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_COARSE | libc::CLOCK_MONOTONIC_RAW => {
                Some(Self::Monotonic)
            }
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => Some(Self::Wall),
            _ => None,
        }
    }

    fn shown(self, machine: &Machine, kernel_ns: i64) -> i64 {
        match self {
            Self::Boot => machine.boot.shown(kernel_ns),
            Self::Monotonic => machine.monotonic.shown(kernel_ns),
            Self::Wall => kernel_ns.saturating_add(machine.wall_ns),
        }
    }

    fn kernel(self, machine: &Machine, shown_ns: i64) -> i64 {
        match self {
            Self::Boot => machine.boot.kernel(shown_ns),
            Self::Monotonic => machine.monotonic.kernel(shown_ns),
            Self::Wall => shown_ns.saturating_sub(machine.wall_ns),
        }
    }
}

fn ns(time: timespec) -> i64 {
    time.tv_sec.saturating_mul(SECOND).saturating_add(time.tv_nsec)
}

fn time_of(ns: i64) -> timespec {
    let ns = ns.max(0);
    timespec { tv_sec: ns / SECOND, tv_nsec: ns % SECOND }
}

/// Hands a time of a clock that is waited for on as the kernel's clock has it.
///
/// # Safety
/// `until` is null or a time.
unsafe fn waiting(
    id: clockid_t,
    until: *const timespec,
    wait: impl FnOnce(*const timespec) -> c_long,
) -> c_long {
    // SAFETY: the caller's promise.
    let time = unsafe { until.as_ref() };
    match (control(), Clock::of(id), time) {
        // What is no time is the kernel's to refuse.
        (Some(control), Some(clock), Some(time)) if (0..SECOND).contains(&time.tv_nsec) => {
            let shown = ns(*time);
            let kernel = time_of(control.with(|machine| clock.kernel(machine, shown)));
            wait(&raw const kernel)
        }
        _ => wait(until),
    }
}

type ClockGettime = unsafe extern "C" fn(clockid_t, *mut timespec) -> c_int;

fn clock_now(id: clockid_t, now: *mut timespec) -> c_int {
    let real = real!(Real::new(c"clock_gettime"), ClockGettime);
    let (Some(control), Some(clock), false) = (control(), Clock::of(id), now.is_null()) else {
        // SAFETY: handed on as it came.
        return unsafe { real(id, now) };
    };
    let (answer, shown) = control.with(|machine| {
        let mut kernel = timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: there is room for a time.
        let answer = unsafe { real(id, &raw mut kernel) };
        (answer, clock.shown(machine, ns(kernel)))
    });
    if answer == 0 {
        // SAFETY: the caller gave a place for a time.
        unsafe { now.write(time_of(shown)) };
    }
    answer
}

/// # Safety
/// As the C library documents it; so with all that follow.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(id: clockid_t, now: *mut timespec) -> c_int {
    clock_now(id, now)
}

/// # Safety
/// See [`clock_gettime`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gettimeofday(now: *mut timeval, zone: *mut c_void) -> c_int {
    let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
    if control().is_none() || now.is_null() || clock_now(libc::CLOCK_REALTIME, &raw mut time) != 0 {
        let real = real!(
            Real::new(c"gettimeofday"),
            unsafe extern "C" fn(*mut timeval, *mut c_void) -> c_int
        );
        // SAFETY: handed on as it came.
        return unsafe { real(now, zone) };
    }
    // SAFETY: the caller gave a place for a time.
    unsafe { now.write(timeval { tv_sec: time.tv_sec, tv_usec: time.tv_nsec / 1000 }) };
    0
}

/// # Safety
/// See [`clock_gettime`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn time(now: *mut time_t) -> time_t {
    let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
    if control().is_none() || clock_now(libc::CLOCK_REALTIME, &raw mut time) != 0 {
        let real = real!(Real::new(c"time"), unsafe extern "C" fn(*mut time_t) -> time_t);
        // SAFETY: handed on as it came.
        return unsafe { real(now) };
    }
    if !now.is_null() {
        // SAFETY: the caller gave a place for a time.
        unsafe { now.write(time.tv_sec) };
    }
    time.tv_sec
}

// ---- waits until a time

/// Only waits of the standard library and of C++ are changed: it has no other way to wait until a
/// time. Six arguments are handed on, however many there are: on these machines they are in
/// registers or in the caller's frame, and what is not meant is not looked at.
///
/// # Safety
/// See [`clock_gettime`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    let real = real!(Real::new(c"syscall"), unsafe extern "C" fn(c_long, ...) -> c_long);
    // The rest of it are flags.
    let call = b & 0x7f;
    if number != libc::SYS_futex || call != c_long::from(libc::FUTEX_WAIT_BITSET) {
        // SAFETY: handed on as it came.
        return unsafe { real(number, a, b, c, d, e, f) };
    }
    let by_wall = b & c_long::from(libc::FUTEX_CLOCK_REALTIME) != 0;
    let id = if by_wall { libc::CLOCK_REALTIME } else { libc::CLOCK_MONOTONIC };
    let until = ptr::with_exposed_provenance::<timespec>(d.cast_unsigned() as usize);
    // SAFETY: this call has a time or null there.
    unsafe {
        waiting(id, until, |until| {
            let until = until.expose_provenance().cast_signed() as c_long;
            real(number, a, b, c, until, e, f)
        })
    }
}

/// By the wall clock: that is what conditions go by unless they are made otherwise
/// (`pthread_condattr_setclock`), which neither the standard library nor RocksDB does.
///
/// # Safety
/// See [`clock_gettime`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_cond_timedwait(
    condition: *mut pthread_cond_t,
    lock: *mut pthread_mutex_t,
    until: *const timespec,
) -> c_int {
    // The first version had smaller conditions.
    let real = real!(
        Real::versioned(c"pthread_cond_timedwait", c"GLIBC_2.3.2"),
        unsafe extern "C" fn(*mut pthread_cond_t, *mut pthread_mutex_t, *const timespec) -> c_int
    );
    // SAFETY: handed on as it came, but for the time.
    let answer = unsafe {
        let wait = |until| c_long::from(real(condition, lock, until));
        waiting(libc::CLOCK_REALTIME, until, wait)
    };
    c_int::try_from(answer).unwrap_or(libc::EINVAL)
}

/// # Safety
/// See [`clock_gettime`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_cond_clockwait(
    condition: *mut pthread_cond_t,
    lock: *mut pthread_mutex_t,
    id: clockid_t,
    until: *const timespec,
) -> c_int {
    type Kind = unsafe extern "C" fn(
        *mut pthread_cond_t,
        *mut pthread_mutex_t,
        clockid_t,
        *const timespec,
    ) -> c_int;
    let real = real!(Real::new(c"pthread_cond_clockwait"), Kind);
    // SAFETY: handed on as it came, but for the time.
    let answer =
        unsafe { waiting(id, until, |until| c_long::from(real(condition, lock, id, until))) };
    c_int::try_from(answer).unwrap_or(libc::EINVAL)
}

/// # Safety
/// See [`clock_gettime`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_nanosleep(
    id: clockid_t,
    flags: c_int,
    time: *const timespec,
    left: *mut timespec,
) -> c_int {
    let real = real!(
        Real::versioned(c"clock_nanosleep", c"GLIBC_2.17"),
        unsafe extern "C" fn(clockid_t, c_int, *const timespec, *mut timespec) -> c_int
    );
    if flags & libc::TIMER_ABSTIME == 0 {
        // SAFETY: handed on as it came.
        return unsafe { real(id, flags, time, left) };
    }
    // SAFETY: handed on as it came, but for the time.
    let answer = unsafe { waiting(id, time, |time| c_long::from(real(id, flags, time, left))) };
    c_int::try_from(answer).unwrap_or(libc::EINVAL)
}

// ---- syncs

/// Before the real one: for so long what is not synced stays so.
fn delay() {
    let Some(control) = control() else { return };
    let mut left = control.with(|machine| machine.sync_ns);
    if left <= 0 {
        return;
    }
    control.count_sync();
    while left > 0 {
        let length = time_of(left);
        let mut rest = timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: both are times.
        let woken = unsafe { libc::nanosleep(&raw const length, &raw mut rest) } != 0;
        // A signal ends it early.
        left = if woken { ns(rest) } else { 0 };
    }
}

/// # Safety
/// See [`clock_gettime`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(file: c_int) -> c_int {
    delay();
    let real = real!(Real::new(c"fsync"), unsafe extern "C" fn(c_int) -> c_int);
    // SAFETY: handed on as it came.
    unsafe { real(file) }
}

/// # Safety
/// See [`clock_gettime`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(file: c_int) -> c_int {
    delay();
    let real = real!(Real::new(c"fdatasync"), unsafe extern "C" fn(c_int) -> c_int);
    // SAFETY: handed on as it came.
    unsafe { real(file) }
}

/// # Safety
/// See [`clock_gettime`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sync_file_range(
    file: c_int,
    from: off64_t,
    length: off64_t,
    flags: u32,
) -> c_int {
    delay();
    let real = real!(
        Real::new(c"sync_file_range"),
        unsafe extern "C" fn(c_int, off64_t, off64_t, u32) -> c_int
    );
    // SAFETY: handed on as it came.
    unsafe { real(file, from, length, flags) }
}
