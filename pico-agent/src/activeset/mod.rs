//! ActiveSets: which pages the requests of each port need, learned from what was touched, so that a wake can bring
//! them before anybody waits for them.
//!
//! Owns the model of one app ([`ActiveSets`]), its file format, the predictors it is compared with, and the scores.
//! Pure: no I/O, no clock, no knowledge of eBPF, userfaultfd, CRIU or the store. Others observe, read and install;
//! what is predicted is a hint, never data: a wrong one makes a wake slower, not wrong.
//!
//! # How it is used
//!
//! ```text
//!  probes, pager --Observation--> Window --learn--> ActiveSets --predict(port, costs)--> pages, in first-touch order
//!                                                       |---packs(costs)--> a base pack and one for each port
//!                                                       '---encode, decode--> a small file that travels along
//! ```
//!
//! 1. Something begins a [`Window`]: a wake ([`Kind::Wake`]: from the restore, when no lazy page is in memory, until
//!    the swap-out or until the window is closed), or a slice of a hot period ([`Kind::Hot`]).
//! 2. Each page's first touch in it is told to [`Window::observe`], each request to [`Window::begin`] and
//!    [`Window::end`], each page that was installed ahead to [`Window::prefetched`]. When the accessed bits of the
//!    window were read, [`Window::accessed_bits_read`] says so; when events were lost, [`Window::lost`].
//! 3. [`ActiveSets::learn`] takes the closed window. [`ActiveSets::retain`] forgets pages that are gone.
//! 4. At the next wake on port `p`, [`ActiveSets::predict`] names the pages worth bringing, given what a miss and what
//!    a page ahead cost from that tier; [`WakeReport`] says how it went.
//!
//! [`Learner`] does these steps for an app as things happen; `lifecycle::learning` keeps it on disk.
//!
//! # What is believed
//!
//! Each port, and the work that belongs to no port (timers, accept loops), has for each page a history of the last
//! eight windows in which it ran: used or not. A fault shows who touched a page *first*; who came later and found it
//! in memory showed nothing, so for that port the window does not count (`evidence`). The chance that a page is used
//! next time is not a formula over its history but what came of equal histories before, in this port, in this app
//! (`calibration`); until there is data, two sightings make a page a member and one beside a known set does not. That is
//! why one huge request poisons nothing, and a page of a request's own data is not prefetched for the next one.

mod calibration;
mod evidence;
mod format;
mod history;
mod learned;
mod learner;
mod model;
mod observe;
mod predict;
mod predictor;
mod report;
#[cfg(test)]
pub(crate) mod synth;
#[cfg(test)]
mod tests;

pub use format::{FILE_MAX, SetsError};
pub use learned::Logistic;
pub use learner::{Closed, Learner};
pub use model::{ActiveSets, Learned, PageView, PortView};
pub use observe::{Kind, OBSERVATIONS_MAX, Observation, PageId, Request, Source, Window};
pub use predict::{Basis, Costs, Packs, Predicted, Prediction};
pub use predictor::{Guess, Predictor, Score, evaluate, predictors};
pub use report::{Tally, WakeReport};
