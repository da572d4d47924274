//! Positions and the messages that carry them: `guest.cfg:7:12: ...`.

use std::fmt;
use std::sync::Arc;

/// A place in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pos {
    /// File name, or `command line`.
    pub source: Arc<str>,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
}

impl Pos {
    /// So many characters further on the same line.
    pub fn right(&self, characters: usize) -> Pos {
        let by = u32::try_from(characters).unwrap_or(u32::MAX);
        Pos { column: self.column.saturating_add(by), ..self.clone() }
    }

    /// An error at this place.
    pub fn error(&self, message: impl Into<String>) -> Diag {
        Diag { pos: self.clone(), message: message.into() }
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.source, self.line, self.column)
    }
}

/// What is wrong, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pos}: {message}")]
pub struct Diag {
    /// Where.
    pub pos: Pos,
    /// One line.
    pub message: String,
}
