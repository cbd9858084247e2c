use super::*;

fn write(m: &mut Model, durable: bool, ok: bool) -> Vec<u8> {
    let job = m.begin(0, Kind::Write { durable }, 3, 1).expect("free");
    let mut data = vec![0; BLOCK_BYTES];
    stamp(&job, &mut data);
    m.finish(job.id, if ok { Ok(()) } else { Err(Fault::MediaWrite) }, &[]);
    data
}

fn read(m: &mut Model, data: &[u8]) -> bool {
    let job = m.begin(0, Kind::Read, 3, 1).expect("free");
    m.finish(job.id, Ok(()), data);
    m.violation().is_none()
}

#[test]
fn a_completed_write_is_the_only_answer_and_a_failed_one_is_an_option_until_seen() {
    let mut m = Model::new(&[8]);
    m.excuse();
    let first = write(&mut m, false, true);
    let second = write(&mut m, false, false);
    assert!(read(&mut m, &second));
    assert!(!read(&mut m, &first), "an older version came back after a newer one was seen");
}

#[test]
fn a_power_cut_may_take_back_what_was_not_flushed_and_nothing_else() {
    let mut m = Model::new(&[8]);
    let old = write(&mut m, false, true);
    let flush = m.begin(0, Kind::Flush, 0, 0).expect("free");
    m.finish(flush.id, Ok(()), &[]);
    write(&mut m, false, true);
    m.crash(true);
    assert!(read(&mut m, &old));
    write(&mut m, true, true);
    m.crash(true);
    assert!(!read(&mut m, &old), "a durable write was lost");
}

#[test]
fn an_answer_from_before_a_power_cut_may_come_after_one_from_behind_it() {
    let mut m = Model::new(&[8]);
    let old = write(&mut m, true, true);
    let new = write(&mut m, false, true);
    let slow = m.begin(0, Kind::Read, 3, 1).expect("free");
    m.power_cut(|_| true);
    assert!(read(&mut m, &old));
    m.finish(slow.id, Ok(()), &new);
    assert_eq!(m.violation(), None);
    assert!(!read(&mut m, &new), "what was lost came back");
}

/// Begins a write of block 3, and returns its identifier and data.
fn begin_write(m: &mut Model) -> (u64, Vec<u8>) {
    let job = m.begin(0, Kind::Write { durable: false }, 3, 1).expect("free");
    let mut data = vec![0; BLOCK_BYTES];
    stamp(&job, &mut data);
    (job.id, data)
}

fn begin_read(m: &mut Model) -> u64 {
    m.begin(0, Kind::Read, 3, 1).expect("shared").id
}

#[test]
fn a_read_beside_a_write_sees_either_and_later_ones_nothing_older() {
    let mut m = Model::new(&[8]);
    m.share(0);
    let old = write(&mut m, false, true);
    let early = begin_read(&mut m);
    let (writer, new) = begin_write(&mut m);
    let late = begin_read(&mut m);
    m.finish(late, Ok(()), &old);
    assert!(read(&mut m, &old) && read(&mut m, &new), "{:?}", m.violation());
    m.finish(early, Ok(()), &old);
    assert_eq!(m.violation(), None, "what it saw came first");
    assert!(!read(&mut m, &old), "an older version came back after the write was seen");
    m.finish(writer, Ok(()), &[]);
}

#[test]
fn a_read_that_a_write_overtook_says_nothing_of_now() {
    let mut m = Model::new(&[8]);
    m.share(0);
    let zeros = vec![0; BLOCK_BYTES];
    let early = begin_read(&mut m);
    let now = write(&mut m, false, true);
    let zero = m.begin(0, Kind::Zero { durable: false, deallocate: false }, 3, 1).expect("free");
    m.finish(early, Ok(()), &zeros);
    assert!(read(&mut m, &now), "{:?}", m.violation());
    m.finish(zero.id, Ok(()), &[]);
    assert!(!read(&mut m, &now), "the zeros are there");
}

#[test]
fn zeros_from_before_a_write_in_doubt_are_not_those_of_a_zeroing_beside_the_read() {
    let mut m = Model::new(&[8]);
    m.share(0);
    let (writer, new) = begin_write(&mut m);
    m.lose(0, 0..8);
    let early = begin_read(&mut m);
    m.finish(writer, Ok(()), &[]);
    let hint = m.begin(0, Kind::Deallocate, 3, 1).expect("free");
    m.finish(early, Ok(()), &[0; BLOCK_BYTES]);
    m.finish(hint.id, Ok(()), &[]);
    assert!(read(&mut m, &new), "{:?}", m.violation());
}

#[test]
fn lost_memory_takes_what_was_acknowledged_and_a_read_only_lun_takes_nothing() {
    let mut m = Model::new(&[8]);
    m.share(0);
    write(&mut m, true, true);
    m.lose(0, 0..8);
    assert!(read(&mut m, &[0; BLOCK_BYTES]), "{:?}", m.violation());
    m.excuse_writes(0);
    write(&mut m, false, false);
    m.set_read_only(0, true);
    assert_eq!(m.violation(), None);
    write(&mut m, false, true);
    assert!(m.violation().is_some());
}

#[test]
fn overlapping_writes_wait_and_a_second_completion_is_a_violation() {
    let mut m = Model::new(&[8]);
    let job = m.begin(0, Kind::Write { durable: false }, 0, 4).expect("free");
    assert!(m.begin(0, Kind::Read, 3, 2).is_none());
    m.finish(job.id, Ok(()), &[]);
    assert!(m.violation().is_none());
    m.finish(job.id, Ok(()), &[]);
    assert!(m.violation().is_some());
}
