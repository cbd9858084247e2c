use super::label::RawLabel;
use super::table::{RawHeader, RawLun};
use super::*;
use trefoil_poll::Rng;

fn label() -> Label {
    Label {
        generation: 0x0102,
        pool_uuid: Uuid::from_bytes([0x11; 16]),
        pool_name: "tank".into(),
        member_uuid: Uuid::from_bytes([0x22; 16]),
        owner: PoolOwner { id: [0x33; 16], epoch: 5 },
        state: LabelState::Ready,
        holder: true,
        block_bytes: 512,
        unit_bytes: 4 << 20,
        len_bytes: 1 << 30,
    }
}

fn table() -> Table {
    let (io, mut pool) = pool_on(&[backend(0, 8), backend(1, 8)]);
    block_on(create_lun(&io, &mut pool, new_lun("a", 160, 4096))).expect("a");
    block_on(create_lun(&io, &mut pool, new_lun("b", 33, 512))).expect("b");
    pool.table().clone()
}

#[test]
fn a_labels_bytes_are_as_documented() {
    let bytes = label().emit();
    let mut golden = b"TREFOIL\0\x01\0\0\0".to_vec();
    golden.extend(GOLDEN_LABEL_CRC.to_le_bytes());
    golden.extend([2, 1, 0, 0, 0, 0, 0, 0]);
    golden.extend([[0x11; 16], [0x22; 16], [0x33; 16]].concat());
    golden.extend([5, 0, 0, 0, 0, 0, 0, 0]);
    golden.extend([2, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 22, 0, 0, 0]);
    golden.extend([0, 0, 0, 0x40, 0, 0, 0, 0]);
    golden.extend(b"tank");
    golden.resize(RawLabel::LEN, 0);
    assert!(bytes == golden, "{:02x?}", &bytes[..112]);
    assert_eq!(Label::parse(&bytes), Ok(label()));
}
const GOLDEN_LABEL_CRC: u32 = 0x5F54_FB7E;

#[test]
fn a_generation_that_has_no_next_is_refused() {
    let no_next = Damage::Invalid("the generation has no next number");
    let (mut label, mut table) = (label(), table());
    (label.generation, table.generation) = (u64::MAX, u64::MAX);
    assert_eq!(Label::parse(&label.emit()), Err(no_next));
    assert_eq!(Table::parse(&table.emit().expect("fits")), Err(no_next));
}

#[test]
fn a_name_that_a_terminal_would_obey_is_refused() {
    let obeyed = Damage::Invalid("a name has control characters");
    let (mut label, mut table) = (label(), table());
    label.pool_name = "tank\x1b[2J".into();
    table.luns[0].name = "a\nb".into();
    assert_eq!(Label::parse(&label.emit()), Err(obeyed));
    assert_eq!(Table::parse(&table.emit().expect("fits")), Err(obeyed));
}

#[test]
fn a_tables_bytes_are_as_documented() {
    let table = table();
    let bytes = table.emit().expect("fits");
    assert_eq!(Table::parse(&bytes), Ok(table.clone()));
    assert_eq!(bytes.len(), 4096);
    assert_eq!(&bytes[..12], b"TREFTBL\0\x01\0\0\0");
    assert_eq!(bytes[16..24], table.generation.to_le_bytes());
    assert_eq!(bytes[24..40], [0xEE; 16]);
    // The unit, the length, and the counts: 2 members, 2 LUNs, 3 runs.
    assert_eq!(bytes[40..64], [0, 0, 1, 0, 0, 0, 0, 0, 0, 16, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
    let lun = &bytes[RawHeader::LEN + 2 * 128..][..RawLun::LEN];
    assert_eq!(lun[..32], [b'a'; 32]);
    assert_eq!(&lun[32..52], b"SERIAL              ");
    assert_eq!(lun[52..72], [0, 16, 0, 0, 160, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        lun[72..97],
        [1_700_000_000u64.to_le_bytes().as_slice(), &[97, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'a']]
            .concat()
    );
    let runs = &bytes[RawHeader::LEN + 2 * 128 + 2 * RawLun::LEN..][..48];
    let words: Vec<u32> = runs.chunks(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
    assert_eq!(words, [0, 0, 8, 0, 1, 0, 2, 0, 1, 2, 1, 0]);
}

#[test]
fn any_flipped_bit_is_noticed() {
    let (label, table) = (label().emit(), table().emit().expect("fits"));
    let mut rng = Rng::new(3);
    for _ in 0..4000 {
        let (mut a, mut b) = (label.clone(), table.clone());
        let (at, bit) = (rng.below(4096) as usize, 1 << rng.below(8));
        a[at] ^= bit;
        b[at] ^= bit;
        assert!(Label::parse(&a).is_err() && Table::parse(&b).is_err(), "bit {bit} of byte {at}");
    }
}

#[test]
fn no_bytes_make_it_panic_and_what_parses_is_consistent() {
    let (label, table) = (label().emit(), table().emit().expect("fits"));
    let mut rng = Rng::new(4);
    let mut parsed = 0;
    for round in 0..40_000u64 {
        let mut bytes = if round % 2 == 0 { label.clone() } else { table.clone() };
        let within = [64, 400, 1024][rng.below(3) as usize];
        for _ in 0..=rng.below(3) {
            bytes[rng.below(within) as usize] = [0, 1, 0x7F, 0xFF, rng.bits() as u8][rng.below(5) as usize];
        }
        if let Some(len) = Table::len_of(&bytes).filter(|&len| (16..=4096).contains(&len)) {
            format::seal(&mut bytes[..len]);
        } else {
            format::seal(&mut bytes);
        }
        let _ = Label::parse(&bytes);
        if let Ok(table) = Table::parse(&bytes) {
            assert_eq!(table.check(), Ok(()));
            parsed += 1;
        }
        bytes.truncate(rng.below(200) as usize);
        assert!(Label::parse(&bytes).is_err() && Table::parse(&bytes).is_err());
    }
    assert!(parsed > 100, "the generator is too wild: {parsed}");
}

#[test]
fn the_largest_table_fits_and_one_more_does_not() {
    let mut table = table();
    let lun = table.luns.remove(0);
    table.luns.clear();
    for n in 0..crate::topology::MAX_LUNS as u32 {
        table.luns.push(PoolLun { name: n.to_string(), runs: Vec::new(), ..lun.clone() });
    }
    table.luns[0].runs = vec![Run { member: 0, start: 0, units: 1 }; super::table::MIN_RUNS];
    assert!(table.emit().is_ok());
    table.luns[0].runs = vec![Run { member: 0, start: 0, units: 1 }; 70_000];
    assert_eq!(table.emit(), Err(TableError::Runs(70_000)));
    table.luns[0].runs.truncate(super::table::MIN_RUNS);
    table.exports = vec![b' '; 128 << 10];
    assert!(table.emit().is_ok());
    table.exports = vec![b' '; 256 << 10];
    assert_eq!(table.emit(), Err(TableError::Exports(256 << 10)));
    table.luns.push(lun);
    assert_eq!(table.emit(), Err(TableError::Luns));
}
