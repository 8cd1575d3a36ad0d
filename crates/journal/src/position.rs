//! How far a journal has come.

/// The number of batches submitted since the journal was opened, up to and with a certain one. What
/// must not be seen before it is durable waits for [`Journal::durable`](crate::Journal::durable) to
/// reach the position its batch got.
///
/// Not stored: a journal that is opened again starts at [`Position::START`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position(u64);

impl Position {
    /// Before the first batch; always durable.
    pub const START: Position = Position(0);

    /// The position after `batches` batches. For stores that take the journal's place.
    pub const fn new(batches: u64) -> Position {
        Position(batches)
    }

    /// How many batches.
    pub const fn get(self) -> u64 {
        self.0
    }
}
