//! An error that ends xlr with a status of its own; every other error ends it with 1.

/// Status and message, as xl gives them: 1 most errors, 2 usage, 3 the domain could not be built, 6 nothing to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Exit status.
    pub status: u8,
    /// One line; empty when all has been said already.
    pub message: String,
}

impl Failure {
    /// End with `status` after printing `message`.
    pub fn error(status: u8, message: impl Into<String>) -> anyhow::Error {
        Failure { status, message: message.into() }.into()
    }

    /// End with `status`; the message is out already.
    pub fn silent(status: u8) -> anyhow::Error {
        Failure::error(status, "")
    }
}
