//! A whole cluster on this machine: `atoll dev`.
//!
//! [`plan`] decides what there is and on which ports (pure), [`prepare`] writes the files,
//! [`children`] owns the processes, [`session`] brings the cluster up and looks after it,
//! [`control`] lets another terminal stop and start one process, [`ready`] is the file that tells
//! programs where everything is, [`layout`] says where things are under `--data`.

mod children;
pub(crate) mod control;
pub(crate) mod layout;
pub(crate) mod plan;
mod ports;
pub(crate) mod prepare;
pub(crate) mod probe;
pub(crate) mod ready;
mod session;
mod show;

use crate::commands::dev::DevArgs;
use crate::connect::Context;
use crate::report::Failure;

use layout::Layout;
use session::Session;

/// The DNS zone of local clusters.
pub(crate) const ZONE: &str = "atoll.test";

/// Runs a cluster until it is told to stop.
pub(crate) async fn run(context: &Context, args: DevArgs) -> Result<(), Failure> {
    let shutdown = atoll_net::shutdown::on_signals();
    let layout = Layout::new(&args.data)?;
    layout.create()?;
    let _lock = layout.lock()?;
    if let Some(file) = &args.ready {
        // One of an earlier start would tell programs too early that everything serves.
        drop(std::fs::remove_file(file));
    }
    session::settle_leftovers(&layout).await;
    let prepared = prepare::prepare(&layout, args.wanted(), args.port_base)?;
    for port in &prepared.moved {
        context
            .out
            .note(format_args!("atoll: another program has the port of {port}; it gets a new one"));
    }
    let mut session = Session::new(context, layout, args, prepared, shutdown)?;
    let result = Box::pin(session.live()).await;
    session.stop_all().await;
    result
}
