//! Sends and receives the messages between a [`Gateway`] and its cores.

use super::{CoreMsg, Gateway, Patience, Senders};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use trefoil_poll::{ControlReceiver, CoreId};
use trefoil_storage::Msg;
use trefoil_storage::msg::{Event, QpairRow, Survey};

impl Gateway {
    /// Returns the connected queue pairs of all cores.
    pub fn survey(&mut self) -> Vec<(CoreId, QpairRow)> {
        self.tell_all(|_| {
            Msg::Survey(Box::new(Survey { qpairs: Vec::with_capacity(512), ..Survey::default() }))
        });
        let mut rows = Vec::new();
        self.each_core_with("Survey", |core, msg| match msg {
            Msg::Survey(survey) => {
                rows.extend(survey.qpairs.into_iter().map(|row| (core, row)));
                None
            }
            other => Some(other),
        });
        rows
    }

    /// Waits until a survey satisfies `is`.
    pub fn wait_survey(&mut self, what: &str, is: impl Fn(&[(CoreId, QpairRow)]) -> bool) {
        let patience = Patience::new(what);
        while !is(&self.survey()) {
            patience.pause();
        }
    }

    /// Waits until a core sends an event that satisfies `is`. Each event satisfies only one wait.
    pub fn wait_event(&mut self, what: &str, is: impl Fn(&Event) -> bool) -> (CoreId, Event) {
        let patience = Patience::new(what);
        loop {
            if let Some(at) = self.events.iter().position(|(_, event)| is(event)) {
                return self.events.swap_remove(at);
            }
            if let Some((_, msg)) = self.next(&patience) {
                panic!("a core sent {msg:?} while the test waits for {what}");
            }
        }
    }

    /// Sends a message to each core. `msg` makes the message for a core.
    pub(super) fn tell_all(&mut self, mut msg: impl FnMut(CoreId) -> CoreMsg) {
        for core in 0..self.cores.len() {
            send(&self.to_cores, core, msg(CoreId(core as u16)));
        }
    }

    /// Waits until each core has sent one message that satisfies `is`.
    pub(super) fn each_core(&mut self, what: &str, is: impl Fn(&CoreMsg) -> bool) {
        self.each_core_with(what, |_, msg| (!is(&msg)).then_some(msg));
    }

    /// Waits until each core has sent one message that `take` accepts.
    pub(super) fn each_core_with(
        &mut self,
        what: &str,
        mut take: impl FnMut(CoreId, CoreMsg) -> Option<CoreMsg>,
    ) {
        let patience = Patience::new(format!("{what} from each core"));
        let mut left = self.cores.len();
        while left > 0 {
            if let Some((core, msg)) = self.next(&patience) {
                if let Some(msg) = take(core, msg) {
                    panic!("{core:?} sent {msg:?} while the test waits for {what}");
                }
                left -= 1;
            }
        }
    }

    /// Returns the next message that is not an event. Stores events for later.
    pub(super) fn next(&mut self, patience: &Patience) -> Option<(CoreId, CoreMsg)> {
        self.assert_turning();
        match self.mail.recv_timeout(patience.left().min(Duration::from_millis(50))) {
            Ok((core, Msg::Event(event))) => {
                self.events.push((core, event));
                None
            }
            Ok((_, Msg::Adopted(_))) => None,
            Ok((core, place @ Msg::Refused(_))) => {
                send(&self.to_cores, usize::from(core.0), place);
                None
            }
            Ok(other) => Some(other),
            Err(_) => None,
        }
    }
}

/// Receives the cores' messages all the time, so that the mailboxes never fill up.
pub(super) fn pump(
    mut from: ControlReceiver<CoreMsg>,
    to: &mpsc::Sender<(CoreId, CoreMsg)>,
    stop: &AtomicBool,
) {
    while !stop.load(Ordering::SeqCst) {
        while let Some(got) = from.pop() {
            // The test may have ended already.
            let _ = to.send(got);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a message to a core. Waits while the core's mailbox is full.
pub(super) fn send(to_cores: &Senders, core: usize, mut msg: CoreMsg) {
    let patience = Patience::new(format!("room in the mailbox of core {core}"));
    loop {
        let sent = to_cores.lock().expect("no thread panicked with it")[core].send(msg);
        match sent {
            Ok(()) => return,
            Err(back) => msg = back,
        }
        patience.pause();
    }
}
