//! A core: a pinned thread that runs turns of one driver and one handler until a stop is requested.
//!
//! What it is: [`spawn`] and the turn loop. A turn first gathers completions and messages. Then the handler decides.
//! Then the turn emits one submission and one flush of the mailboxes. Without work the core spins or sleeps in the
//! kernel, as [`Idle`] selects.
//!
//! What it is not: a scheduler. A handler finishes each call at once and never blocks.

use crate::io::Handler;
use crate::mailbox::{Bell, Doze};
use crate::mesh::Ports;
use crate::metrics::CoreMetrics;
use crate::ram::DeferredFences;
use crate::time::Instant;
use crate::uring_io::{UringConfig, UringIo};
use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use trefoil_sys::cpu;
use trefoil_sys::uring::Features;

/// The time for which a stopping core waits for the kernel to end outstanding operations.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The behaviour of a core without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// The core keeps polling. The latency is lowest, but the core uses a whole CPU.
    Spin,
    /// The core polls for a while, then sleeps until there is work.
    Adaptive {
        /// The time of polling, in microseconds.
        spin_us: u32,
    },
}

impl Default for Idle {
    fn default() -> Self {
        Self::Adaptive { spin_us: 50 }
    }
}

/// Settings of one core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreConfig {
    /// The CPU to pin the core to.
    pub cpu: Option<usize>,
    /// The core's behaviour without work.
    pub idle: Idle,
    /// The sizes of the core's driver.
    pub uring: UringConfig,
}

/// A running core.
pub struct CoreHandle<H> {
    thread: JoinHandle<io::Result<H>>,
    stop: Arc<AtomicBool>,
    bell: Bell,
    metrics: Arc<CoreMetrics>,
}

impl<H> CoreHandle<H> {
    /// Returns the core's live counters.
    pub fn metrics(&self) -> &Arc<CoreMetrics> {
        &self.metrics
    }

    /// Asks the core to stop. The core closes its sockets, ends its file operations, and reports both to its
    /// handler.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        Doze::order();
        self.bell.wake_if_asleep();
    }

    /// Returns whether the core's thread has ended, by itself or on request.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the core's end and returns its handler.
    ///
    /// # Errors
    /// The kernel error that ended the core.
    ///
    /// # Panics
    /// Panics if the core panicked, with the same panic.
    pub fn join(self) -> io::Result<H> {
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

thread_local! {
    static ON_CORE: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether the calling thread is a core after its start-up. Such a core must not allocate or block. A guarding
/// allocator calls this function.
pub fn is_core_running() -> bool {
    ON_CORE.get()
}

/// Starts the core that owns `ports`. `make_handler` runs on the core's pinned thread, so that the memory that
/// `make_handler` maps is local to the thread's CPU. Returns once the core runs its turn loop.
///
/// # Errors
/// An error of thread creation, sched_setaffinity(2) or io_uring_setup(2).
pub fn spawn<M, H, F>(config: CoreConfig, ports: Ports<M>, make_handler: F) -> io::Result<CoreHandle<H>>
where
    M: Send + 'static,
    H: Handler<UringIo<M>> + Send + 'static,
    F: FnOnce(&mut UringIo<M>) -> H + Send + 'static,
{
    let stop = Arc::new(AtomicBool::new(false));
    let metrics = Arc::new(CoreMetrics::default());
    let bell = ports.bell.clone();
    let (started, ready) = mpsc::sync_channel(1);
    let (on_stop, counters) = (stop.clone(), metrics.clone());
    let thread = std::thread::Builder::new().name(format!("core-{}", ports.core().0)).spawn(move || {
        let (mut io, mut handler) = match start(&config, ports, make_handler) {
            Ok(ready) => ready,
            Err(e) => {
                let copy = io::Error::new(e.kind(), e.to_string());
                // `spawn` waits for this message.
                let _ = started.send(Err(e));
                return Err(copy);
            }
        };
        let _ = started.send(Ok(()));
        ON_CORE.set(true);
        let deferred = DeferredFences::begin();
        let ended = turn_until(&mut io, &mut handler, config.idle, &counters, &on_stop);
        let ended = ended.and_then(|()| wind_down(&mut io, &mut handler, &counters));
        drop(deferred);
        ON_CORE.set(false);
        if ended.is_err() || !io.is_quiet() {
            // The kernel may still write to memory of the driver.
            std::mem::forget(io);
        }
        ended.map(|()| handler)
    })?;
    match ready.recv() {
        Ok(result) => result?,
        // The thread panicked before its first turn.
        Err(_) => {
            let panic = thread.join().map(drop);
            return match panic {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => Err(io::Error::other("a core's thread ended before the core ran")),
            };
        }
    }
    Ok(CoreHandle { thread, stop, bell, metrics })
}

fn start<M, H, F>(config: &CoreConfig, ports: Ports<M>, make: F) -> io::Result<(UringIo<M>, H)>
where
    M: Send,
    F: FnOnce(&mut UringIo<M>) -> H,
{
    if let Some(cpu) = config.cpu {
        cpu::pin(cpu)?;
    }
    let mut io = UringIo::new(&config.uring, &Features::probe()?, ports)?;
    let handler = make(&mut io);
    Ok((io, handler))
}

fn turn_until<M: Send, H: Handler<UringIo<M>>>(
    io: &mut UringIo<M>,
    handler: &mut H,
    idle: Idle,
    metrics: &CoreMetrics,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut turn = io.begin_turn();
    let mut last_work = turn;
    while !stop.load(Ordering::Acquire) {
        let worked = turn_once(io, handler)?;
        let now = io.begin_turn();
        metrics.count_turn(worked, now.since(turn));
        turn = now;
        if worked {
            last_work = turn;
            continue;
        }
        let Idle::Adaptive { spin_us } = idle else {
            std::hint::spin_loop();
            continue;
        };
        if turn.since(last_work) < Duration::from_micros(u64::from(spin_us)) {
            std::hint::spin_loop();
            continue;
        }
        let timeout = match handler.next_deadline() {
            Some(at) if at <= turn => continue,
            at => at.map(|at: Instant| at - turn),
        };
        io.sleep(timeout, stop)?;
        metrics.count_sleep();
        turn = io.begin_turn();
    }
    Ok(())
}

/// Runs one turn: gathers, decides and emits. Returns `true` if the turn did work or left work for the next turn.
fn turn_once<M: Send, H: Handler<UringIo<M>>>(io: &mut UringIo<M>, handler: &mut H) -> io::Result<bool> {
    let mut worked = io.restart_starved();
    worked |= io.complete(handler);
    worked |= io.settle_closing(handler);
    worked |= io.deliver(handler);
    worked |= handler.on_turn(io);
    worked |= io.ports.flush();
    io.submit()?;
    Ok(worked || io.has_pending())
}

/// Closes all sockets, and runs turns until no operation is outstanding.
fn wind_down<M: Send, H: Handler<UringIo<M>>>(
    io: &mut UringIo<M>,
    handler: &mut H,
    metrics: &CoreMetrics,
) -> io::Result<()> {
    let began = io.begin_turn();
    loop {
        io.close_all();
        let worked = turn_once(io, handler)?;
        let now = io.begin_turn();
        metrics.count_turn(worked, Duration::ZERO);
        if io.is_quiet() {
            return Ok(());
        }
        if now.since(began) > STOP_TIMEOUT {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "operations did not end when a core stopped",
            ));
        }
    }
}
