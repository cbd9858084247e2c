//! The transport's side of a command: which PDU is next, and how much of its data has come.

use crate::list::{Fifo, Linked, NIL};

/// The next PDU of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The response, once the command layer has produced it.
    Response,
    /// An R2T, once the command has a block for the data.
    Block,
    /// An R2T, which is in the connection's list of output.
    R2t,
    /// Data from the host.
    Data,
}

/// The transport's own state of a command.
#[derive(Clone, Copy, Debug)]
pub struct TcpCommand {
    /// The next PDU.
    pub next: Next,
    /// True if a data digest was wrong. The command fails once all its data has come.
    pub is_corrupt: bool,
    /// Bytes of data that the host sends.
    pub len: u32,
    /// Bytes that have come from the host.
    pub moved: u32,
    link: u32,
}

/// Bytes of the transport's side of a command.
pub const COMMAND_BYTES: usize = size_of::<TcpCommand>();

impl TcpCommand {
    /// Returns a new command that moves `len` bytes, in either direction.
    #[inline]
    pub const fn new(next: Next, len: u32) -> Self {
        Self { next, is_corrupt: false, len, moved: 0, link: NIL }
    }
}

impl Linked for TcpCommand {
    #[inline]
    fn link(&mut self) -> &mut u32 {
        &mut self.link
    }
}

/// The transport's state of all commands, by the commands' numbers. Start-up reserves the memory. It is touched only up to the
/// highest number in use so far.
pub struct TcpCommands {
    commands: Vec<TcpCommand>,
}

impl TcpCommands {
    /// Reserves memory for `count` commands of [`COMMAND_BYTES`].
    pub fn new(count: usize) -> Self {
        Self { commands: Vec::with_capacity(count) }
    }

    /// Starts a new command.
    #[inline]
    pub fn start(&mut self, at: u32, new: TcpCommand) {
        match self.commands.get_mut(at as usize) {
            Some(command) => *command = new,
            None => self.grow(at, new),
        }
    }

    #[cold]
    fn grow(&mut self, at: u32, new: TcpCommand) {
        self.commands.resize(at as usize, TcpCommand::new(Next::Response, 0));
        self.commands.push(new);
    }

    /// Returns the command with this number. A host may have invented the number.
    #[inline]
    pub fn get(&self, at: u32) -> Option<&TcpCommand> {
        self.commands.get(at as usize)
    }

    /// Appends a command to a list of output.
    #[inline]
    pub fn push(&mut self, list: &mut Fifo, at: u32) {
        list.push(&mut self.commands, at);
    }

    /// Removes the first command of a list of output.
    #[inline]
    pub fn pop(&mut self, list: &mut Fifo) -> Option<u32> {
        list.pop(&mut self.commands)
    }

    /// Iterates over a list of output.
    pub fn iter(&self, list: &Fifo) -> impl Iterator<Item = u32> {
        std::iter::successors(list.first(), |at| Some(self.get(*at)?.link).filter(|next| *next != NIL))
    }
}

impl std::ops::Index<u32> for TcpCommands {
    type Output = TcpCommand;

    #[inline]
    fn index(&self, at: u32) -> &TcpCommand {
        &self.commands[at as usize]
    }
}

impl std::ops::IndexMut<u32> for TcpCommands {
    #[inline]
    fn index_mut(&mut self, at: u32) -> &mut TcpCommand {
        &mut self.commands[at as usize]
    }
}
