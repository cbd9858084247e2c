//! Figures from /proc about a process and the machine's sockets (proc(5)), and the socket options of a measurement.

use anyhow::{Context, Result};
use std::net::TcpStream;
use std::time::Duration;
use trefoil_sys::socket::{self, CongestionControl};

/// The unit of the times in /proc/PID/stat. USER_HZ is 100 on every architecture that we run on.
const TICK: Duration = Duration::from_millis(10);
const PAGE_BYTES: u64 = 4096;

/// Returns the congestion control of all connections of a measurement, for the floors and the gateway. This is the kernel's usual
/// algorithm, if we may choose it. If the machine's default were BBR, the measurement would show only how BBR paces by timers.
pub fn congestion_control() -> Option<CongestionControl> {
    let allowed = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").ok()?;
    let usual = allowed.split_whitespace().find(|&name| name == "cubic")?;
    CongestionControl::new(usual)
}

/// Returns the options of a measurement's connections.
pub fn socket_options() -> socket::Options {
    socket::Options { congestion_control: congestion_control(), ..socket::Options::default() }
}

/// Gives a floor's socket the same options as the gateway's sockets.
///
/// # Errors
/// The error of the kernel.
pub fn prepare(socket: &TcpStream) -> Result<()> {
    socket::prepare_accepted(socket)?;
    if let Some(algorithm) = congestion_control() {
        algorithm.set(socket)?;
    }
    Ok(())
}

/// Returns the resident memory (VmRSS) in bytes.
///
/// # Errors
/// An error if there is no such process.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = kib.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{path} has no VmRSS"))? << 10)
}

/// Returns the CPU time of all threads of the process, including ended threads. The resolution is 10 ms.
///
/// # Errors
/// An error if there is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    Ok(TICK * ticks(&text).with_context(|| format!("{path} has an unexpected form"))?)
}

/// Returns utime + stime, which are fields 14 and 15. The name in field 2 may contain any characters. It ends with the last `)`
/// of the line.
fn ticks(stat: &str) -> Option<u32> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u32>().ok();
    Some(next()? + next()?)
}

/// Returns the memory of all TCP sockets of this network namespace, in bytes. This includes the buffers, but not the sockets' own
/// structures.
///
/// # Errors
/// An error if /proc/net/sockstat is not as expected.
pub fn tcp_memory_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/net/sockstat")?;
    Ok(tcp_pages(&text).context("/proc/net/sockstat has no `TCP: ... mem`")? * PAGE_BYTES)
}

fn tcp_pages(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    line.split_whitespace().skip_while(|word| *word != "mem").nth(1)?.parse().ok()
}

/// Returns the average number of runnable threads over the last minute.
///
/// # Errors
/// An error if /proc/loadavg is not as expected.
pub fn load_average() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    text.split_whitespace().next().and_then(|word| word.parse().ok()).context("/proc/loadavg has no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 700 25 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(725));
        assert_eq!(ticks("12 (a"), None);
    }

    #[test]
    fn socket_memory_is_the_word_after_mem() {
        let text = "sockets: used 9\nTCP: inuse 7 orphan 0 tw 2 alloc 10 mem 33\nUDP: inuse 1 mem 4\n";
        assert_eq!(tcp_pages(text), Some(33));
    }

    #[test]
    fn this_process_has_both() {
        let me = std::process::id();
        assert!(resident_bytes(me).unwrap() > 100_000);
        let before = cpu_time(me).unwrap();
        let begun = std::time::Instant::now();
        while cpu_time(me).unwrap() == before {
            assert!(begun.elapsed() < Duration::from_secs(60), "no CPU time was counted");
        }
    }
}
