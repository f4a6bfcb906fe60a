//! Exit codes: the one table of them, for the code, the help pages and the tests.

use std::process::ExitCode;

use crate::control::protocol::ErrorCode;

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
    /// No such app.
    pub const NOT_FOUND: Exit = Exit(4);
    /// Not allowed.
    pub const DENIED: Exit = Exit(5);
    /// No agent.
    pub const UNREACHABLE: Exit = Exit(6);
    /// Not on this host.
    pub const UNSUPPORTED: Exit = Exit(7);
    /// Not in time.
    pub const TIMEOUT: Exit = Exit(124);
    /// Ended by the user.
    pub const INTERRUPTED: Exit = Exit(130);
    /// The app did not start.
    pub const START_FAILED: Exit = Exit(170);
    /// The app's checkpoint was not brought back.
    pub const RESTORE_FAILED: Exit = Exit(171);
}

/// Every exit code and its meaning.
pub const TABLE: &[(Exit, &str)] = &[
    (Exit::OK, "done"),
    (Exit::FAILURE, "failed; with `doctor --strict`, a warning"),
    (Exit::USAGE, "the command line or the configuration is wrong"),
    (
        Exit::WRONG_STATE,
        "the app is in a state in which this cannot be done",
    ),
    (Exit::NOT_FOUND, "there is no such app"),
    (Exit::DENIED, "not allowed: run it as root"),
    (Exit::UNREACHABLE, "no agent answers"),
    (Exit::UNSUPPORTED, "this host lacks something that is needed"),
    (Exit::TIMEOUT, "it took longer than --timeout"),
    (Exit::INTERRUPTED, "interrupted"),
    (Exit::START_FAILED, "the app ended before it ran"),
    (
        Exit::RESTORE_FAILED,
        "the app's checkpoint could not be brought back; it is kept",
    ),
];

impl From<ErrorCode> for Exit {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Usage | ErrorCode::Config => Exit::USAGE,
            ErrorCode::NotFound => Exit::NOT_FOUND,
            ErrorCode::WrongState | ErrorCode::NameTaken => Exit::WRONG_STATE,
            ErrorCode::Denied => Exit::DENIED,
            ErrorCode::Unreachable => Exit::UNREACHABLE,
            ErrorCode::Unsupported => Exit::UNSUPPORTED,
            ErrorCode::Timeout => Exit::TIMEOUT,
            ErrorCode::Interrupted => Exit::INTERRUPTED,
            ErrorCode::StartFailed => Exit::START_FAILED,
            ErrorCode::RestoreFailed => Exit::RESTORE_FAILED,
            ErrorCode::Busy | ErrorCode::SleepFailed | ErrorCode::Failed => Exit::FAILURE,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.0)
    }
}

/// The part of every help page that tells the exit codes.
pub fn help() -> String {
    let rows = TABLE
        .iter()
        .map(|(exit, meaning)| format!("\n  {:<4} {meaning}", exit.0));
    format!("Exit codes:{}", rows.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODES: [ErrorCode; 15] = [
        ErrorCode::Usage,
        ErrorCode::Config,
        ErrorCode::NotFound,
        ErrorCode::WrongState,
        ErrorCode::NameTaken,
        ErrorCode::Denied,
        ErrorCode::Unreachable,
        ErrorCode::Unsupported,
        ErrorCode::Timeout,
        ErrorCode::Busy,
        ErrorCode::Interrupted,
        ErrorCode::StartFailed,
        ErrorCode::RestoreFailed,
        ErrorCode::SleepFailed,
        ErrorCode::Failed,
    ];

    #[test]
    fn every_failure_has_an_exit_code_of_the_table_and_none_is_success() {
        for code in CODES {
            let exit = Exit::from(code);
            assert_ne!(exit, Exit::OK, "{code:?}");
            assert!(TABLE.iter().any(|(known, _)| *known == exit), "{code:?}");
        }
    }

    #[test]
    fn exit_codes_are_what_scripts_rely_on() {
        let numbers: Vec<u8> = TABLE.iter().map(|(exit, _)| exit.0).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 124, 130, 170, 171]);
    }
}
