//! The broker's machine in a simulated world: clients, networks, store, outside and clock, all of
//! them as hostile as they may be, and all decided by one seed.
//!
//! ```text
//! seed ─► dice ─► plan (clients, limits, weather)
//!                   │
//!  client ──► link ─┼─► machine ──► store (slow, stalls, forgets at a crash)
//!    ▲               │      └─────► outside (access that changes, tap that refuses)
//!    └──── link ◄────┘
//!  judge: reads along at the broker's edge and in the clients, and holds it against the invariants
//! ```
//! The machine is the real one, unchanged: it has neither IO nor clock nor chance of its own, so a
//! seed makes the same run every time. A run that breaks an [`Invariant`] is printed with the command
//! that repeats it. That the judge is worth something is shown by [`Fault`]s: defects switched on in the
//! machine, each found within a stated number of seeds.
//!
//! Read [`invariants`] for what is promised, `plan` for what happens, `judge` for how it is told.
//! What is left out is in `docs/simulation.md`.

#[cfg(any(test, feature = "fuzzing"))]
mod babble;
mod client;
mod dice;
mod faults;
pub mod invariants;
mod judge;
mod ledger;
mod life;
mod link;
mod outside;
mod plan;
mod run;
mod store;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod strangers;
#[cfg(test)]
mod tests;
mod topics;
mod trace;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use faults::{Fault, UnknownFault};
pub use invariants::Invariant;
pub use trace::Detail;

use invariants::Violation;
use run::Run;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Steps before the run is brought to its end.
    pub steps: usize,
    /// A defect to be switched on.
    pub fault: Option<Fault>,
    /// What is kept of the events.
    pub detail: Detail,
}

impl Options {
    /// A run of `seed` with 600 steps and no fault.
    pub fn new(seed: u64) -> Options {
        Options {
            seed,
            steps: 600,
            fault: None,
            detail: Detail::Off,
        }
    }
}

/// A run in which every invariant held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Steps taken.
    pub steps: usize,
    /// Times the broker was killed and started again.
    pub crashes: usize,
    /// Messages published, wills included.
    pub messages: usize,
    /// A hash over everything that happened, if the trace was on; two runs of a seed have the same.
    pub digest: u64,
}

/// A run in which an invariant did not hold.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What was run.
    pub options: Options,
    /// The step that showed it.
    pub step: usize,
    /// What is broken.
    pub invariant: Invariant,
    /// How it shows.
    pub detail: String,
    /// The last events, oldest first.
    pub trace: Vec<String>,
}

impl Failure {
    /// The command that repeats the run.
    pub fn command(&self) -> String {
        let Options {
            seed, steps, fault, ..
        } = self.options;
        let fault = fault.map_or_else(String::new, |fault| format!(" --fault {fault}"));
        format!(
            "cargo run -p broker --release --features simulation --example simulate -- \
             --seed {seed} --steps {steps}{fault} --trace"
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(
            f,
            "seed {}, step {}: broken: {}",
            self.options.seed, self.step, self.invariant
        )?;
        writeln!(f, "  {}", self.detail)?;
        writeln!(f, "  ({})", self.invariant.sentence())?;
        write!(f, "again: {}", self.command())
    }
}

/// Runs once.
///
/// # Errors
/// [`Failure`] when an invariant is broken, or the machine panics.
pub fn run(options: Options) -> Result<Report, Box<Failure>> {
    let failure = match attempt(options) {
        Ok(report) => return Ok(report),
        Err(failure) => failure,
    };
    if options.detail != Detail::Off {
        return Err(failure);
    }
    // Once more, with the trace on.
    match attempt(Options {
        detail: Detail::Last(60),
        ..options
    }) {
        Err(mut traced) => {
            traced.options.detail = options.detail;
            Err(traced)
        }
        // Not the same twice: still a failure, with what is known of it.
        Ok(_) => Err(failure),
    }
}

fn attempt(options: Options) -> Result<Report, Box<Failure>> {
    let mut run = Run::new(options.seed, options.detail, options.fault);
    let verdict =
        catch_unwind(AssertUnwindSafe(|| run.run(options.steps))).unwrap_or_else(|panic| {
            let said = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(Violation::new(
                Invariant::NoPanic,
                said.unwrap_or("a panic without words"),
            ))
        });
    let step = run.step;
    match verdict {
        Ok(()) => Ok(Report {
            steps: step,
            crashes: run.crashes,
            messages: run.judge.ledger.all().len(),
            digest: run.trace.digest(),
        }),
        Err(Violation { invariant, detail }) => Err(Box::new(Failure {
            options,
            step,
            invariant,
            detail,
            trace: run.trace.lines(),
        })),
    }
}
