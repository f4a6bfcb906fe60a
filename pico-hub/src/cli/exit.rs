//! Exit codes: the one table of them, for the code, the help pages and the tests.

use std::process::ExitCode;

use tonic::Code;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(pub u8);

impl Exit {
    /// Done.
    pub const OK: Exit = Exit(0);
    /// Not done.
    pub const FAILURE: Exit = Exit(1);
    /// Not understood.
    pub const USAGE: Exit = Exit(2);
    /// The app is not in the state for it.
    pub const WRONG_STATE: Exit = Exit(3);
    /// No such object.
    pub const NOT_FOUND: Exit = Exit(4);
    /// Not allowed.
    pub const DENIED: Exit = Exit(5);
    /// No hub, or no agent.
    pub const UNREACHABLE: Exit = Exit(6);
    /// Not as things are.
    pub const PRECONDITION: Exit = Exit(7);
    /// Not in time.
    pub const TIMEOUT: Exit = Exit(124);
    /// Ended by the user.
    pub const INTERRUPTED: Exit = Exit(130);
    /// The app did not start.
    pub const START_FAILED: Exit = Exit(170);
    /// The app's checkpoint was not brought back.
    pub const RESTORE_FAILED: Exit = Exit(171);

    /// For a failure that the hub or an agent named: by its reason where that says more, else by its kind.
    pub(super) fn of(reason: &str, code: Code) -> Exit {
        match (reason, code) {
            ("START_FAILED", _) => Exit::START_FAILED,
            ("RESTORE_FAILED", _) => Exit::RESTORE_FAILED,
            ("WRONG_STATE", _) => Exit::WRONG_STATE,
            ("UNSUPPORTED", _) => Exit::PRECONDITION,
            ("TIMEOUT", _) => Exit::TIMEOUT,
            (_, Code::Ok) => Exit::OK,
            (_, Code::InvalidArgument | Code::OutOfRange) => Exit::USAGE,
            (_, Code::NotFound) => Exit::NOT_FOUND,
            (_, Code::PermissionDenied | Code::Unauthenticated) => Exit::DENIED,
            (_, Code::Unavailable) => Exit::UNREACHABLE,
            (_, Code::FailedPrecondition | Code::Unimplemented) => Exit::PRECONDITION,
            (_, Code::DeadlineExceeded) => Exit::TIMEOUT,
            (_, Code::Cancelled) => Exit::INTERRUPTED,
            (
                _,
                Code::AlreadyExists
                | Code::ResourceExhausted
                | Code::Aborted
                | Code::Internal
                | Code::DataLoss
                | Code::Unknown,
            ) => Exit::FAILURE,
        }
    }
}

/// Every exit code and its meaning.
pub const TABLE: &[(Exit, &str)] = &[
    (Exit::OK, "done"),
    (
        Exit::FAILURE,
        "failed; with `apply --dry-run`, something would change",
    ),
    (Exit::USAGE, "the command line, a file or the spec in it is wrong"),
    (
        Exit::WRONG_STATE,
        "the app is in a state in which this cannot be done; `status`: it is not hot",
    ),
    (Exit::NOT_FOUND, "there is no such app, token, agent or operation"),
    (Exit::DENIED, "not allowed: no token, or not this one"),
    (
        Exit::UNREACHABLE,
        "no hub answers, or the app's agent is not connected",
    ),
    (
        Exit::PRECONDITION,
        "not as things are: changed meanwhile, or not supported there",
    ),
    (Exit::TIMEOUT, "it took longer than --wait-timeout; it goes on"),
    (Exit::INTERRUPTED, "interrupted; what was begun goes on"),
    (Exit::START_FAILED, "the app ended before it ran"),
    (
        Exit::RESTORE_FAILED,
        "the app's checkpoint could not be brought back; it is kept",
    ),
];

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.0)
    }
}

/// The part of every help page that tells the exit codes.
pub(super) fn help() -> String {
    let rows = TABLE
        .iter()
        .map(|(exit, meaning)| format!("\n  {:<4} {meaning}", exit.0));
    format!(
        "Exit codes:{}\n  `app exec` passes on the status of its command; 128 and the number of the signal that ended it",
        rows.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_has_an_exit_code_of_the_table_and_none_is_success() {
        for code in 1..=16 {
            let exit = Exit::of("", Code::from(code));
            assert_ne!(exit, Exit::OK, "{code}");
            assert!(TABLE.iter().any(|(known, _)| *known == exit), "{code}");
        }
        assert_eq!(Exit::of("", Code::Ok), Exit::OK);
    }

    #[test]
    fn a_reason_says_more_than_a_kind() {
        for (reason, code, exit) in [
            ("START_FAILED", Code::Internal, 170),
            ("RESTORE_FAILED", Code::Internal, 171),
            ("WRONG_STATE", Code::FailedPrecondition, 3),
            ("CONFLICT", Code::FailedPrecondition, 7),
            ("NO_AGENT", Code::Unavailable, 6),
            ("NOT_FOUND", Code::NotFound, 4),
            ("", Code::Unauthenticated, 5),
            ("", Code::DeadlineExceeded, 124),
        ] {
            assert_eq!(Exit::of(reason, code), Exit(exit), "{reason} {code:?}");
        }
    }

    #[test]
    fn the_codes_are_told_apart_and_explained_on_every_help_page() {
        let text = help();
        let mut codes: Vec<u8> = TABLE.iter().map(|(exit, _)| exit.0).collect();
        assert!(codes.iter().all(|code| text.contains(&format!("\n  {code:<4} "))));
        codes.dedup();
        assert_eq!(codes.len(), TABLE.len());
    }
}
