//! The runtime: cores, turns, buffers, mailboxes, timers.
