//! What a person, or a program reading `--json`, is told while a verb works.
//!
//! A bar on a terminal, line events with `--json`, nothing otherwise: logs stay readable.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use atoll_client::DeployProgress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::output::Output;
use crate::text;

/// Events and redraws come at most this often.
const EVERY: Duration = Duration::from_millis(200);

/// Shows how far a verb is.
pub(crate) struct Progress {
    bar: ProgressBar,
    events: Option<Output>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    phase: &'static str,
    files: u64,
    hashed: u64,
    total: u64,
    sent: u64,
    told: Option<Instant>,
}

/// A line of `--json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event {
    Left { what: &'static str, left: u64 },
    Phase { phase: &'static str },
    Progress { phase: &'static str, files: u64, bytes: u64, bytes_total: Option<u64> },
}

impl Progress {
    /// For a verb whose result goes to `out`.
    pub(crate) fn new(out: &Output) -> Self {
        let bar = ProgressBar::no_length();
        let shown = !out.json() && out.messages_to_terminal();
        let target =
            if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        bar.set_draw_target(target);
        bar.set_style(style("{spinner} {msg}"));
        let events = out.json().then(|| Output::new(true));
        Self { bar, events, state: Mutex::default() }
    }

    /// So many bytes are to be sent.
    pub(crate) fn expect(&self, bytes: u64) {
        self.bar.set_style(style("{msg:10} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}"));
        self.bar.set_length(bytes);
        self.bar.set_position(0);
        self.update(|state| state.total = bytes);
    }

    /// So many more bytes are sent.
    pub(crate) fn sent(&self, bytes: u64) {
        self.bar.inc(bytes);
        self.update(|state| state.sent += bytes);
    }

    /// What is being done, for people.
    pub(crate) fn say(&self, text: String) {
        self.bar.set_message(text);
        self.bar.tick();
    }

    /// Leaves the screen as it was.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut state);
        if state.told.is_some_and(|told| told.elapsed() < EVERY) {
            return;
        }
        state.told = Some(Instant::now());
        let sending = state.total > 0;
        if !sending {
            let (files, bytes) = (text::count(state.files, "file"), text::bytes(state.hashed));
            self.bar.set_message(format!("{} {files}, {bytes}", state.phase));
            self.bar.tick();
        }
        let bytes = if sending { state.sent } else { state.hashed };
        let bytes_total = sending.then_some(state.total);
        self.event(&Event::Progress { phase: state.phase, files: state.files, bytes, bytes_total });
    }

    fn event(&self, event: &Event) {
        if let Some(out) = &self.events {
            // A reader who has gone is noticed when the result is written.
            drop(out.object(event));
        }
    }
}

impl DeployProgress for Progress {
    fn hashed(&self, files: u64, bytes: u64) {
        self.update(|state| {
            state.files += files;
            state.hashed += bytes;
        });
    }

    fn uploading(&self, total_bytes: u64) {
        self.expect(total_bytes);
    }

    fn uploaded(&self, bytes: u64) {
        self.sent(bytes);
    }

    fn phase(&self, phase: &'static str) {
        self.bar.set_message(phase);
        self.event(&Event::Phase { phase });
        self.update(|state| {
            state.phase = phase;
            state.total = 0;
            state.told = Some(Instant::now());
        });
    }
}

/// Shows how much is left of something that goes on elsewhere, and may grow again.
pub(crate) struct Countdown {
    bar: ProgressBar,
    events: Option<Output>,
    what: &'static str,
    last: Mutex<u64>,
}

impl Countdown {
    /// So much of `what` is left.
    pub(crate) fn new(out: &Output, what: &'static str, left: u64) -> Self {
        let bar = ProgressBar::new(left);
        let shown = !out.json() && out.messages_to_terminal();
        let target =
            if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        bar.set_draw_target(target);
        bar.set_style(style("{wide_bar} {msg} {eta}"));
        bar.set_message(format!("{left} {what}"));
        let events = out.json().then(|| Output::new(true));
        Self { bar, events, what, last: Mutex::new(left) }
    }

    /// So much is left now.
    pub(crate) fn left(&self, left: u64) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let total = self.bar.length().unwrap_or(left).max(left);
        self.bar.set_length(total);
        self.bar.set_position(total - left);
        self.bar.set_message(format!("{left} {}", self.what));
        if *last != left
            && let Some(out) = &self.events
        {
            // A reader who has gone is noticed when the result is written.
            drop(out.object(&Event::Left { what: self.what, left }));
        }
        *last = left;
    }

    /// Leaves the screen as it was.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates of this file are well-formed")
}
