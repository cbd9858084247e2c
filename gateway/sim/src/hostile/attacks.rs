//! The attacks of the hostile host, one function for each kind.

use std::pin::Pin;
use std::time::Duration;

use trefoil_poll::Instant;
use trefoil_wire::fabrics::DYNAMIC_CNTLID;
use trefoil_wire::nvme::{AdminCommand, BlockRange, IdentifyCommand, IoCommand, Sgl, Sqe, Status};
use trefoil_wire::tcp::{FatalStatus, H2cData, field};

use super::line::{At, Lines, Pdu, ic_req};
use super::{Attack, Cut, GREEDY, HOST, UNLISTED};
use crate::timeouts::{CONNECT_TIMEOUT, DISCOVERY_TIMEOUT, PROGRESS_TIMEOUT};

type Start = fn(Lines, u64) -> Attack;

macro_rules! attack {
    ($name:literal, $function:ident) => {
        ($name, |lines, bits| -> Attack {
            Box::pin(async move { $function(&lines, bits).await }) as Pin<Box<_>>
        })
    };
}

/// Every kind of attack. The name of an attack is also the name of its fault.
pub const ATTACKS: &[(&str, Start)] = &[
    attack!("hostile-icreq", wrong_icreq),
    attack!("hostile-header", wrong_header),
    attack!("hostile-truncated", truncated),
    attack!("hostile-data", wrong_data),
    attack!("hostile-digest", wrong_digest),
    attack!("hostile-twice", same_cid),
    attack!("hostile-flood", flood),
    attack!("hostile-slow", slow),
    attack!("hostile-deaf", deaf),
    attack!("hostile-deaf", deaf),
    attack!("hostile-no-data", send_no_data),
    attack!("hostile-many-conns", open_many),
    attack!("hostile-many-conns", open_many),
    attack!("hostile-cut-join", cut_join),
    attack!("hostile-cut-join", cut_join),
    attack!("hostile-cut-join", cut_join),
];

/// The attack that always runs beside the others.
pub const STANDING: (&str, Start) = attack!("hostile-idle-discovery", idle_discovery);

/// A namespace whose LUN every host may see.
const NSID: u32 = 1;
/// Bytes of a write whose data does not fit into a capsule.
const LARGE: u32 = 16_384;
/// The data that the attacks write. This data must never land on a LUN. It differs from the data of every version in the model.
const JUNK: u8 = 0x5A;

fn invalid(offset_bytes: u32) -> FatalStatus {
    FatalStatus::InvalidHeaderField { offset_bytes }
}

fn pick<T: Copy>(cases: &[T], bits: u64) -> T {
    cases[(bits % cases.len() as u64) as usize]
}

fn write(lines: &Lines, at: At, len: u32, in_capsule: bool) -> Sqe {
    let sgl = match in_capsule {
        true => Sgl::InCapsule { offset_bytes: 0, len_bytes: len },
        false => Sgl::Transport { len_bytes: len },
    };
    IoCommand::Write(BlockRange::new(0, len / 512)).sqe(lines.cid(at), NSID, sgl)
}

/// Opens an admin queue and an I/O queue.
async fn pair(lines: &Lines, entries: u16, digests: (bool, bool)) -> Result<(At, At), Cut> {
    let (admin, cntlid) = lines.admin().await?;
    Ok((admin, lines.queue(cntlid, 1, entries, digests).await?))
}

/// Sends a large write, and returns the data PDU that the R2T for this write requests.
async fn granted(lines: &Lines, io: At) -> Result<H2cData, Cut> {
    let since = lines.now();
    lines.send(io, &lines.capsule(io, write(lines, io, LARGE, false), &[]));
    match lines.pdu(io).await? {
        Pdu::R2t(r2t) => {
            Ok(H2cData { cid: r2t.cid, ttag: r2t.ttag, offset_bytes: 0, len_bytes: LARGE, last: true })
        }
        other => Err(no_grant(since, other)),
    }
}

/// Returns the verdict on a write that was sent at `since` and got no R2T. The write's LUN may not exist yet, or may be on an
/// array that can't be reached.
fn no_grant(since: Instant, pdu: Pdu) -> Cut {
    match pdu {
        Pdu::Response(cqe) => refused(since, cqe.status)
            .unwrap_or_else(|| Cut::Wrong(format!("a write got {} instead of an R2T", cqe.status))),
        other => Cut::Wrong(format!("{other:?} instead of an R2T")),
    }
}

/// Returns the verdict on `status` if the current state of the LUN can cause this status for any command.
fn refused(since: Instant, status: Status) -> Option<Cut> {
    match status.is(Status::INVALID_NAMESPACE) {
        true => Some(Cut::Gone("no LUN yet")),
        false => status.is_path_error().then_some(Cut::Refused { since, status }),
    }
}

/// Sends an ICReq with a wrong field, or two ICReqs, or an ICReq after a command (NVMe-oF TCP 1.0c §3.6.2.2).
async fn wrong_icreq(lines: &Lines, bits: u64) -> Result<(), Cut> {
    let cases = [
        (8, 1, FatalStatus::UnsupportedParameter { offset_bytes: field::PFV }),
        (10, 32, invalid(field::PDA)),
        (2, 127, invalid(field::HLEN)),
        (4, 127, invalid(field::PLEN)),
        (0, 0x0a, invalid(field::PDU_TYPE)),
        (0, 0x01, invalid(field::PDU_TYPE)),
    ];
    match bits % 4 {
        0 => {
            let at = lines.initialized((false, false)).await?;
            lines.send(at, &ic_req((false, false)));
            lines.expect_terminate(at, FatalStatus::SequenceError, "a second ICReq").await
        }
        1 => {
            let at = lines.open();
            lines.send(at, &lines.capsule(at, IoCommand::Flush.sqe(1, NSID, Sgl::NONE), &[]));
            lines.expect_terminate(at, FatalStatus::SequenceError, "a command before ICReq").await
        }
        _ => {
            let (byte, value, status) = pick(&cases, bits / 4);
            let mut bytes = ic_req((false, false));
            bytes[byte] = value;
            let at = lines.open();
            lines.send(at, &bytes);
            lines.expect_terminate(at, status, "a wrong ICReq").await
        }
    }
}

/// Sends a capsule whose header is malformed or announces too many bytes.
async fn wrong_header(lines: &Lines, bits: u64) -> Result<(), Cut> {
    let cases: [(usize, &[u8], FatalStatus); 7] = [
        (0, &[0x0a], invalid(field::PDU_TYPE)),
        (1, &[0x01], invalid(field::FLAGS)),
        (2, &[71], invalid(field::HLEN)),
        (3, &[71], invalid(field::PDO)),
        (4, &[71, 0], invalid(field::PLEN)),
        (4, &[0, 0, 1], invalid(field::PLEN)),
        (7, &[0x80], invalid(field::PLEN)),
    ];
    let (byte, values, status) = pick(&cases, bits);
    let (_admin, io) = pair(lines, 32, (false, false)).await?;
    let mut bytes = lines.capsule(io, write(lines, io, 512, true), &[JUNK; 512]);
    bytes[byte..byte + values.len()].copy_from_slice(values);
    lines.send(io, &bytes);
    lines.expect_terminate(io, status, "a malformed capsule").await
}

/// Sends only a part of a capsule, or of the data after an R2T. The controller must still be able to reset.
async fn truncated(lines: &Lines, bits: u64) -> Result<(), Cut> {
    let (admin, io) = pair(lines, 32, (false, false)).await?;
    let bytes = match bits % 2 {
        0 => lines.capsule(io, write(lines, io, 4096, true), &[JUNK; 4096]),
        _ => {
            let pdu = granted(lines, io).await?;
            lines.h2c(io, pdu, &[JUNK; LARGE as usize])
        }
    };
    lines.send(io, &bytes[..(bits / 2 % bytes.len() as u64) as usize]);
    lines.close(io);
    lines.sleep(Duration::from_millis(bits % 5)).await;
    lines.enable(admin, false).await
}

/// Sends data that was not requested, is out of order, ends past the requested range, or is too large.
async fn wrong_data(lines: &Lines, bits: u64) -> Result<(), Cut> {
    type Change = fn(H2cData) -> H2cData;
    let cases: [(Change, FatalStatus); 6] = [
        (|p| H2cData { ttag: p.ttag.wrapping_add(77), ..p }, invalid(field::TTAG)),
        (|p| H2cData { cid: p.cid + 1, ..p }, invalid(field::CCCID)),
        (|p| H2cData { offset_bytes: 8192, len_bytes: 8192, ..p }, FatalStatus::DataOutOfRange),
        (|p| H2cData { len_bytes: 2 * LARGE, ..p }, FatalStatus::DataOutOfRange),
        (|p| H2cData { len_bytes: 8192, ..p }, invalid(field::FLAGS)),
        (|p| H2cData { len_bytes: (1 << 20) + 4, ..p }, FatalStatus::LimitExceeded),
    ];
    let (change, status) = pick(&cases, bits);
    let (_admin, io) = pair(lines, 32, (false, false)).await?;
    let pdu = change(granted(lines, io).await?);
    // The gateway judges the PDU by its header alone.
    lines.send(io, &lines.h2c(io, pdu, &[])[..24]);
    lines.expect_terminate(io, status, "wrong data").await
}

/// Sends a wrong digest. A wrong header digest ends the connection. A wrong data digest fails only its command.
async fn wrong_digest(lines: &Lines, bits: u64) -> Result<(), Cut> {
    let (_admin, io) = pair(lines, 32, (true, true)).await?;
    let sqe = write(lines, io, 512, true);
    let mut bytes = lines.capsule(io, sqe, &[JUNK; 512]);
    if bits.is_multiple_of(2) {
        bytes[72] ^= 1;
        let received = bytes[72..].first_chunk().map_or(0, |four| u32::from_le_bytes(*four));
        lines.send(io, &bytes);
        return lines
            .expect_terminate(io, FatalStatus::HeaderDigestError { received }, "a header digest")
            .await;
    }
    if let Some(last) = bytes.last_mut() {
        *last ^= 0x80;
    }
    lines.send(io, &bytes);
    let status = lines.finish(io, sqe.cid).await?.status;
    match status.is(Status::TRANSIENT_TRANSPORT_ERROR) {
        true => Ok(()),
        false if status.is(Status::INVALID_NAMESPACE) => Err(Cut::Gone("no LUN yet")),
        false => Err(Cut::Wrong(format!("a wrong data digest got {status}"))),
    }
}

/// Sends a command with an identifier that another command still uses.
async fn same_cid(lines: &Lines, _: u64) -> Result<(), Cut> {
    let (_admin, io) = pair(lines, 32, (false, false)).await?;
    let pdu = granted(lines, io).await?;
    let status = lines.command(io, IoCommand::Flush.sqe(pdu.cid, NSID, Sgl::NONE), &[]).await?.status;
    match status == Status::COMMAND_ID_CONFLICT.dnr() {
        true => Ok(()),
        false => Err(Cut::Wrong(format!("the same identifier twice got {status}"))),
    }
}

/// Sends more commands than the queue has entries.
async fn flood(lines: &Lines, _: u64) -> Result<(), Cut> {
    let (_admin, io) = pair(lines, 4, (false, false)).await?;
    let _first = granted(lines, io).await?;
    for _ in 0..4 {
        lines.send(io, &lines.capsule(io, write(lines, io, LARGE, false), &[]));
    }
    lines.expect_terminate(io, FatalStatus::SequenceError, "more commands than entries").await
}

/// Sends an ICReq slowly, byte by byte, or only the first byte of the Connect capsule. The gateway must end the connection at its
/// deadline.
async fn slow(lines: &Lines, bits: u64) -> Result<(), Cut> {
    let at = match bits % 2 {
        0 => lines.open(),
        _ => lines.initialized((false, false)).await?,
    };
    let bytes = ic_req((false, false));
    let pause = CONNECT_TIMEOUT / 60;
    for byte in bytes.iter().take(90) {
        // After ICResp, this byte is the start of a capsule.
        lines.send(at, &[if bits.is_multiple_of(2) { *byte } else { 4 }][..usize::from(!lines.is_over(at))]);
        if !bits.is_multiple_of(2) {
            break;
        }
        if lines.is_over(at) {
            break;
        }
        lines.sleep(pause).await;
    }
    lines.expect_end(at, CONNECT_TIMEOUT + Duration::from_secs(1), "a slow connect").await
}

/// Requests much data and reads none of it, while a polite connection continues.
async fn deaf(lines: &Lines, bits: u64) -> Result<(), Cut> {
    let (admin, cntlid) = lines.admin().await?;
    let io = lines.queue(cntlid, 1, 128, (false, false)).await?;
    let (polite, _) = lines.admin().await?;
    let probe =
        IoCommand::Read(BlockRange::new(0, 8)).sqe(lines.cid(io), NSID, Sgl::Transport { len_bytes: 4096 });
    let since = lines.now();
    let status = lines.command(io, probe, &[]).await?.status;
    if !status.is_ok() {
        return Err(refused(since, status).unwrap_or(Cut::Gone("no LUN to read")));
    }
    lines.deafen(io, true);
    let blocks = [8, 256, 512][(bits % 3) as usize];
    for _ in 0..127 {
        let read = IoCommand::Read(BlockRange::new(0, blocks));
        let sqe = read.sqe(lines.cid(io), NSID, Sgl::Transport { len_bytes: blocks * 512 });
        lines.send(io, &lines.capsule(io, sqe, &[]));
    }
    attend(lines, &[admin, polite], PROGRESS_TIMEOUT + Duration::from_secs(1)).await?;
    // The gateway can't tell a host that doesn't read that the connection ends. When the host reads again, it receives at most
    // the bytes that the network held.
    lines.deafen(io, false);
    lines.expect_end(io, Duration::from_secs(1), "a host that doesn't read").await
}

/// Checks for `time` that the admin queues still complete commands.
async fn attend(lines: &Lines, admins: &[At], time: Duration) -> Result<(), Cut> {
    const PAUSE: Duration = Duration::from_millis(250);
    for _ in 0..time.div_duration_f64(PAUSE) as u32 {
        lines.sleep(PAUSE).await;
        for &at in admins {
            let identify = AdminCommand::Identify(IdentifyCommand { cns: 1, ..Default::default() });
            let sqe = identify.sqe(lines.cid(at), 0, Sgl::Transport { len_bytes: 4096 });
            let status = lines.command(at, sqe, &[]).await?.status;
            if !status.is_ok() {
                return Err(Cut::Wrong(format!("Identify beside a queue that does harm got {status}")));
            }
        }
    }
    Ok(())
}

/// Starts as many large writes as possible, and sends none or only a little of the requested data.
async fn send_no_data(lines: &Lines, bits: u64) -> Result<(), Cut> {
    const QUEUES: u16 = 12;
    lines.be(GREEDY);
    let (admin, cntlid) = lines.admin().await?;
    lines.ask_queues(admin, QUEUES).await?;
    let mut queues = Vec::new();
    for qid in 1..=QUEUES {
        queues.push(lines.queue(cntlid, qid, 32, (false, false)).await?);
    }
    let len = [LARGE, 1 << 20][(bits % 2) as usize];
    let ask =
        |io| (0..30).for_each(|_| lines.send(io, &lines.capsule(io, write(lines, io, len, false), &[])));
    let first = queues[0];
    let since = lines.now();
    // Write on this queue first and alone. Otherwise the other queues might take the host's share of memory before this queue
    // does.
    ask(first);
    match lines.pdu(first).await? {
        Pdu::R2t(r2t) if bits & 2 != 0 => {
            let pdu = H2cData { cid: r2t.cid, ttag: r2t.ttag, offset_bytes: 0, len_bytes: len, last: true };
            lines.send(first, &lines.h2c(first, pdu, &[])[..24]);
            lines.send(first, &[JUNK; 100]);
        }
        Pdu::R2t(_) => {}
        other => return Err(no_grant(since, other)),
    }
    queues.iter().skip(1).for_each(|&io| ask(io));
    let (polite, _) = lines.admin().await?;
    attend(lines, &[admin, polite], PROGRESS_TIMEOUT + PROGRESS_TIMEOUT / 2).await?;
    lines.expect_end(first, Duration::ZERO, "a host with pending data").await?;
    // Some writes get memory only when other writes have been cut off. Their deadline starts when they get the memory.
    for io in queues {
        lines.expect_end(io, 3 * PROGRESS_TIMEOUT, "a host with pending data").await?;
    }
    Ok(())
}

/// Opens more connections than there are slots. All of them are of a kind that any host may open. Replaces each connection that
/// the gateway closes. Meanwhile a listed host must still be able to connect.
async fn open_many(lines: &Lines, bits: u64) -> Result<(), Cut> {
    const CONNS: usize = 190;
    // The topology may not be published yet.
    let (first, _) = lines.admin().await?;
    let join = || {
        let at = lines.open();
        let ic = ic_req((false, false));
        lines.be(UNLISTED);
        let rest = match bits % 5 {
            0 => Vec::new(),
            1 => ic[..100].to_vec(),
            2 => [&ic[..], &lines.discovery_capsule(at, 0)].concat(),
            3 => [&ic[..], &lines.discovery_capsule(at, 60_000)].concat(),
            _ => [&ic[..], &lines.connect_capsule(at, DYNAMIC_CNTLID, 0, 32).0].concat(),
        };
        lines.be(HOST);
        lines.send(at, &rest);
        at
    };
    let mut all: Vec<At> = (0..CONNS).map(|_| join()).collect();
    for _ in 0..3 {
        lines.sleep(Duration::from_millis(10)).await;
        for at in &mut all {
            if lines.is_over(*at) {
                *at = join();
            }
        }
        // The listed host has the same address as these connections. If its Connect is late, newer connections from the same
        // address can take its slot.
        let judge = |cut| match cut {
            Cut::Gone(why) => Cut::Wrong(format!("a listed host among many connections: {why}")),
            wrong => wrong,
        };
        let (admin, cntlid) = lines.admin().await.map_err(judge)?;
        let io = lines.queue(cntlid, 1, 32, (false, false)).await.map_err(judge)?;
        lines.close(io);
        lines.close(admin);
    }
    lines.enable(first, false).await
}

/// Opens a discovery controller without a Keep Alive Timeout, and then sends nothing.
async fn idle_discovery(lines: &Lines, _: u64) -> Result<(), Cut> {
    let result = async {
        let at = lines.initialized((false, false)).await?;
        lines.send(at, &lines.discovery_capsule(at, 0));
        match lines.pdu(at).await? {
            Pdu::Response(cqe) if cqe.status.is_ok() => {}
            Pdu::Response(_) => return Err(Cut::Gone("Connect was refused")),
            other => return Err(Cut::Wrong(format!("{other:?} instead of the completion of Connect"))),
        }
        lines.expect_end(at, DISCOVERY_TIMEOUT + Duration::from_secs(1), "an idle discovery controller").await
    };
    let result = result.await;
    // The run restarts this attack immediately after its end.
    lines.sleep(Duration::from_millis(20)).await;
    result
}

/// Sends the Connect of each queue, and closes the queue's connection at once. The controller must still be able to reset.
async fn cut_join(lines: &Lines, bits: u64) -> Result<(), Cut> {
    let (admin, cntlid) = lines.admin().await?;
    lines.ask_queues(admin, 8).await?;
    for qid in 1..=8 {
        let io = lines.initialized((false, false)).await?;
        let (capsule, _) = lines.connect_capsule(io, cntlid, qid, 32);
        lines.send(io, &capsule);
        lines.close(io);
    }
    lines.sleep(Duration::from_millis(bits % 4)).await;
    lines.enable(admin, false).await
}
