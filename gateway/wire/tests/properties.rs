//! Properties of every format: parse never panics, and an emitted value parses back to the same value.

use proptest::array::uniform32;
use proptest::collection::vec;
use proptest::prelude::*;
use trefoil_wire::fabrics::discovery::{DiscoveryLog, LogEntry, LogHeader};
use trefoil_wire::fabrics::{ConnectData, ConnectResponse, FabricsCommand, Nqn};
use trefoil_wire::nvme::identify::*;
use trefoil_wire::nvme::log::*;
use trefoil_wire::nvme::*;
use trefoil_wire::tcp::*;

/// Returns a strategy for bytes of any length up to `N`, zero-padded to `N`. So proptest can shrink to short inputs.
fn array<const N: usize>() -> impl Strategy<Value = [u8; N]> {
    vec(any::<u8>(), 0..=N).prop_map(|bytes| {
        let mut array = [0; N];
        array[..bytes.len()].copy_from_slice(&bytes);
        array
    })
}

/// Asserts that `parse(emit(parse(bytes))) == parse(bytes)`, where `emit` writes into a dirty buffer.
macro_rules! stable {
    ($($name:ident: $type:ty),* $(,)?) => {
        proptest! {$(
            #[test]
            fn $name(bytes in array::<{ <$type>::LEN }>()) {
                let value = <$type>::parse(&bytes);
                let mut dirty = [0xff; <$type>::LEN];
                value.emit(&mut dirty);
                prop_assert_eq!(<$type>::parse(&dirty), value);
            }
        )*}
    };
}

stable! {
    sgl: Sgl,
    sqe: Sqe,
    cqe: Cqe,
    dsm_range: DsmRange,
    identify_controller: IdentifyController,
    identify_namespace: IdentifyNamespace,
    identify_nvm_namespace: IdentifyNvmNamespace,
    identify_nvm_controller: IdentifyNvmController,
    identify_independent: IdentifyNamespaceIndependent,
    error_entry: ErrorEntry,
    smart_log: SmartLog,
    firmware_slots: FirmwareSlots,
    discovery_header: LogHeader,
}

proptest! {
    #[test]
    fn commands_read_from_any_entry_come_back(bytes in array::<64>()) {
        let sqe = Sqe::parse(&bytes);
        let (cid, nsid, sgl1) = (sqe.cid, sqe.nsid, sqe.sgl1);
        let io = IoCommand::parse(&sqe);
        prop_assert_eq!(IoCommand::parse(&io.sqe(cid, nsid, sgl1)), io);
        let admin = AdminCommand::parse(&sqe);
        prop_assert_eq!(AdminCommand::parse(&admin.sqe(cid, nsid, sgl1)), admin);
        let fabrics = FabricsCommand::parse(&sqe);
        prop_assert_eq!(FabricsCommand::parse(&fabrics.sqe(cid, sgl1)), fabrics);
    }

    #[test]
    fn io_ranges(slba: u64, nlb in 1u32..=65536, fua: bool, limited_retry: bool, prinfo in 0u8..16, deac: bool) {
        let range = BlockRange { slba, nlb, fua, limited_retry, prinfo };
        for command in [IoCommand::Read(range), IoCommand::Write(range), IoCommand::WriteZeroes { range, deac }] {
            prop_assert_eq!(IoCommand::parse(&command.sqe(0, 1, Sgl::NONE)), command);
        }
    }

    #[test]
    fn status_fields(field in 0u16..0x8000) {
        let status = Status::from_field(field);
        prop_assert_eq!(status.field(), field);
        prop_assert!(!status.name().is_empty());
        prop_assert_eq!(status.dnr().more().code(), status.code());
    }

    #[test]
    fn connect_data(bytes in array::<1024>()) {
        // `parse` refuses most arbitrary data, and must do so without a panic.
        if let Ok(data) = ConnectData::parse(&bytes) {
            let mut dirty = [0xff; 1024];
            data.emit(&mut dirty);
            prop_assert_eq!(ConnectData::parse(&dirty), Ok(data));
        }
    }

    #[test]
    fn connect_data_of_valid_names(
        hostid in uniform32(1u8..), cntlid: u16, sub in "[a-z0-9.:]{1,200}", host in "[a-z0-9.:]{1,200}",
    ) {
        let name = |text: &str| Nqn::new(&format!("nqn.2026-01.{text}")).unwrap();
        let data = ConnectData {
            hostid: *hostid.first_chunk().unwrap(), cntlid, subnqn: name(&sub), hostnqn: name(&host),
        };
        let mut dirty = [0xff; 1024];
        data.emit(&mut dirty);
        prop_assert_eq!(ConnectData::parse(&dirty), Ok(data));
    }

    #[test]
    fn connect_response(bytes in array::<16>()) {
        let response = ConnectResponse::parse(&Cqe::parse(&bytes));
        prop_assert_eq!(ConnectResponse::parse(&response.cqe(0, 0)), response);
    }

    #[test]
    fn nqn_of_any_text(text in ".{0,230}") {
        if let Ok(nqn) = Nqn::new(&text) {
            prop_assert_eq!(nqn.as_str(), &text);
            prop_assert_eq!(Nqn::parse(&nqn.field()), Ok(nqn));
        }
    }

    #[test]
    fn discovery_log(bytes in vec(any::<u8>(), 0..4000), numrec: u64) {
        let mut bytes = bytes;
        if let Some(field) = bytes.get_mut(8..16) {
            field.copy_from_slice(&numrec.to_le_bytes());
        }
        if let Ok(log) = DiscoveryLog::parse(&bytes) {
            prop_assert!(log.entries().count() <= (bytes.len() - LogHeader::LEN) / LogEntry::LEN);
        }
    }

    #[test]
    fn ana_log_of_any_bytes(bytes in vec(any::<u8>(), 0..300)) {
        if let Ok(log) = AnaLog::parse(&bytes) {
            let nsids: usize = log.iter().flatten().map(|group| group.nsids().len()).sum();
            prop_assert!(ana_log_len(0, nsids) <= bytes.len());
        }
    }

    #[test]
    fn ana_log(groups in vec((any::<u32>(), any::<u64>(), 0u8..16, vec(1u32.., 0..20)), 0..10), change: u64) {
        let nsids = groups.iter().map(|group| group.3.len()).sum();
        let mut buffer = vec![0xff; ana_log_len(groups.len(), nsids)];
        let mut writer = AnaLogWriter::new(change, &mut buffer).unwrap();
        for (group_id, count, state, nsids) in &groups {
            writer.group(*group_id, *count, AnaState::from_bits(*state), nsids.iter().copied()).unwrap();
        }
        prop_assert_eq!(writer.finish(), buffer.len());
        let log = AnaLog::parse(&buffer).unwrap();
        let parsed: Vec<_> = log
            .iter()
            .map(Result::unwrap)
            .map(|group| (group.group_id, group.change_count, group.state.bits(), group.nsids().collect()))
            .collect();
        prop_assert_eq!(log.change_count, change);
        prop_assert_eq!(parsed, groups);
    }

    #[test]
    fn namespace_lists(nsids in vec(1u32.., 0..1024)) {
        let mut dirty = [0xff; IDENTIFY_LEN];
        prop_assert_eq!(NamespaceList::emit(nsids.iter().copied(), &mut dirty), nsids.len());
        prop_assert!(NamespaceList::parse(&dirty).iter().eq(nsids));
    }

    #[test]
    fn identify_lists_of_any_bytes(bytes in array::<4096>()) {
        prop_assert!(NamespaceDescriptors::parse(&bytes).count() <= IDENTIFY_LEN / 5);
        prop_assert!(ControllerList::parse(&bytes).iter().count() <= ControllerList::MAX);
        prop_assert!(UuidList::parse(&bytes).iter().count() <= 127);
        prop_assert!(IoCommandSetList::parse(&bytes).iter().count() <= 512);
        let _ = (ChangedNamespaces::parse(&bytes), CommandsAndEffects::parse(&bytes).io(bytes[0]));
    }
}

fn framing(receiver: Receiver) -> impl Strategy<Value = Framing> {
    (any::<bool>(), any::<bool>(), 1u32..=32).prop_map(move |(header_digest, data_digest, dwords)| Framing {
        header_digest,
        data_digest,
        data_alignment_bytes: dwords * 4,
        max_capsule_data_bytes: 1 << 20,
        max_data_bytes: 1 << 20,
        ..Framing::initial(receiver)
    })
}

/// Returns the layout that a receiver derives from an emitted header.
fn received(header: &[u8], framing: &Framing) -> Layout {
    CommonHeader::parse(header.first_chunk().unwrap()).unwrap().layout(framing).unwrap()
}

proptest! {
    #[test]
    fn any_header(bytes: [u8; 8], framing in framing(Receiver::Controller), host: bool) {
        let receiver = if host { Receiver::Host } else { Receiver::Controller };
        let Ok(header) = CommonHeader::parse(&bytes) else { return Ok(()) };
        let mut dirty = [0xff; 8];
        header.emit(&mut dirty);
        prop_assert_eq!(dirty, bytes);
        if let Ok(layout) = header.layout(&Framing { receiver, ..framing }) {
            prop_assert_eq!(layout.total_len(), header.plen);
            prop_assert!(layout.before_data_len() as usize <= 255);
            prop_assert!(layout.data_len <= 1 << 20);
        }
    }

    #[test]
    fn command_capsule(bytes in array::<64>(), data_len in 0u32..=1 << 20, framing in framing(Receiver::Controller)) {
        let capsule = CapsuleCmd { sqe: Sqe::parse(&bytes) };
        let mut dirty = [0xff; CapsuleCmd::LEN];
        let Framing { header_digest, data_digest, data_alignment_bytes, .. } = framing;
        let header = capsule.emit(header_digest, data_digest, data_alignment_bytes, data_len, &mut dirty);
        let layout = received(&dirty, &framing);
        prop_assert_eq!((layout.data_len, layout.total_len()), (data_len, header.plen));
        prop_assert_eq!(CapsuleCmd::parse(&dirty), capsule);
    }

    #[test]
    fn response_capsule(bytes in array::<16>(), framing in framing(Receiver::Host)) {
        let capsule = CapsuleResp { cqe: Cqe::parse(&bytes) };
        let mut dirty = [0xff; CapsuleResp::LEN];
        capsule.emit(framing.header_digest, &mut dirty);
        prop_assert_eq!(received(&dirty, &framing).data_len, 0);
        prop_assert_eq!(CapsuleResp::parse(&dirty), capsule);
    }

    #[test]
    fn data_pdus(
        cid: u16, ttag: u16, dwords in 0u32..1 << 29, len_bytes in 1u32..=1 << 20, last: bool, success: bool,
        h2c in framing(Receiver::Controller),
    ) {
        let offset_bytes = dwords * 4;
        let Framing { header_digest, data_digest, data_alignment_bytes, .. } = h2c;
        let mut dirty = [0xff; 24];

        let pdu = H2cData { cid, ttag, offset_bytes, len_bytes, last };
        pdu.emit(header_digest, data_digest, data_alignment_bytes, &mut dirty);
        prop_assert_eq!(H2cData::parse(&dirty, received(&dirty, &h2c).data_len), Ok(pdu));

        let c2h = Framing { receiver: Receiver::Host, ..h2c };
        dirty.fill(0xff);
        let pdu = C2hData { cid, offset_bytes, len_bytes, last, success: success && last };
        pdu.emit(header_digest, data_digest, data_alignment_bytes, &mut dirty);
        prop_assert_eq!(C2hData::parse(&dirty, received(&dirty, &c2h).data_len), Ok(pdu));

        dirty.fill(0xff);
        let pdu = R2t { cid, ttag, offset_bytes, len_bytes };
        pdu.emit(header_digest, &mut dirty);
        prop_assert_eq!(received(&dirty, &c2h).data_len, 0);
        prop_assert_eq!(R2t::parse(&dirty), Ok(pdu));
    }

    #[test]
    fn initialize(bytes in array::<128>(), dwords in 1u32..=32, digests: (bool, bool), max in 1024u32..) {
        if let Ok(request) = IcReq::parse(&bytes) {
            let mut dirty = [0xff; 128];
            request.emit(&mut dirty);
            prop_assert_eq!(IcReq::parse(&dirty), Ok(request));
        }
        let response = IcResp {
            controller_alignment_bytes: dwords * 4,
            header_digest: digests.0,
            data_digest: digests.1,
            max_h2c_data_bytes: (max / 4 * 4).max(4096),
        };
        let mut dirty = [0xff; 128];
        response.emit(&mut dirty);
        prop_assert_eq!(received(&dirty, &Framing::initial(Receiver::Host)).data_len, 0);
        prop_assert_eq!(IcResp::parse(&dirty), Ok(response));
    }

    #[test]
    fn terminate(fes: u16, fei: u32, offender in vec(any::<u8>(), 0..=128)) {
        let status = FatalStatus::from_fields(fes, fei);
        let request = TermReq { status, offender: &offender };
        let mut dirty = [0xff; TermReq::MAX_LEN];
        let len = request.emit(TermReqDirection::HostToController, &mut dirty);
        let layout = received(&dirty, &Framing::initial(Receiver::Controller));
        prop_assert_eq!(layout.total_len() as usize, len);
        prop_assert_eq!(TermReq::parse(&dirty[..len]), Ok(request));
    }

    #[test]
    fn data_headers_of_any_bytes(bytes: [u8; 24], data_len: u32) {
        let _ = (H2cData::parse(&bytes, data_len), C2hData::parse(&bytes, data_len), R2t::parse(&bytes));
        let _ = (TermReq::parse(&bytes), CapsuleResp::parse(&bytes));
    }

    #[test]
    fn digests_append(bytes in vec(any::<u8>(), 0..500), at: prop::sample::Index) {
        let (head, tail) = bytes.split_at(at.index(bytes.len() + 1));
        prop_assert_eq!(digest_append(digest(head), tail), digest(&bytes));
    }
}
