//! Identify Controller, CNS 01h (NVMe base 2.0c §5.17.2.1, figure 275).

use crate::bytes::Ascii;

bits! {
    /// CMIC: controller multi-path I/O and namespace sharing capabilities.
    pub struct MultipathCapabilities: u8 {
        /// The subsystem may have more than one port.
        multiple_ports: bool = 0, 1;
        /// The subsystem may have more than one controller.
        multiple_controllers: bool = 1, 1;
        /// The controller belongs to an SR-IOV virtual function.
        virtual_function: bool = 2, 1;
        /// ANA reporting.
        ana_reporting: bool = 3, 1;
    }
}

bits! {
    /// OAES: optional asynchronous events supported.
    pub struct AsyncEventsSupported: u32 {
        /// Namespace Attribute Notices.
        namespace_attribute: bool = 8, 1;
        /// Firmware Activation Notices.
        firmware_activation: bool = 9, 1;
        /// ANA Change Notices.
        ana_change: bool = 11, 1;
        /// Predictable Latency Event Aggregate Log Change Notices.
        predictable_latency: bool = 12, 1;
        /// LBA Status Information Notices.
        lba_status: bool = 13, 1;
        /// Endurance Group Event Aggregate Log Change Notices.
        endurance_group: bool = 14, 1;
        /// Normal NVM Subsystem Shutdown.
        normal_shutdown: bool = 15, 1;
        /// Zone Descriptor Changed Notices.
        zone_descriptor: bool = 27, 1;
        /// Discovery Log Page Change Notification.
        discovery_change: bool = 31, 1;
    }
}

bits! {
    /// CTRATT: controller attributes.
    pub struct ControllerAttributes: u32 {
        /// 128-bit host identifier.
        host_id_128: bool = 0, 1;
        /// Non-operational power state permissive mode.
        power_permissive: bool = 1, 1;
        /// NVM sets.
        nvm_sets: bool = 2, 1;
        /// Read recovery levels.
        read_recovery_levels: bool = 3, 1;
        /// Endurance groups.
        endurance_groups: bool = 4, 1;
        /// Predictable latency mode.
        predictable_latency: bool = 5, 1;
        /// Traffic based keep alive.
        traffic_keep_alive: bool = 6, 1;
        /// Namespace granularity.
        namespace_granularity: bool = 7, 1;
        /// SQ associations.
        sq_associations: bool = 8, 1;
        /// UUID list.
        uuid_list: bool = 9, 1;
        /// Multi-domain subsystem.
        multi_domain: bool = 10, 1;
        /// Extended LBA formats.
        extended_lba_formats: bool = 15, 1;
    }
}

bits! {
    /// OACS: optional admin commands.
    pub struct OptionalAdminCommands: u16 {
        /// Security Send and Receive.
        security: bool = 0, 1;
        /// Format NVM.
        format: bool = 1, 1;
        /// Firmware Commit and Image Download.
        firmware: bool = 2, 1;
        /// Namespace Management and Attachment.
        namespace_management: bool = 3, 1;
        /// Device Self-test.
        self_test: bool = 4, 1;
        /// Directives.
        directives: bool = 5, 1;
        /// NVMe-MI Send and Receive.
        mi: bool = 6, 1;
        /// Virtualization Management.
        virtualization: bool = 7, 1;
        /// Doorbell Buffer Config.
        doorbell_buffer: bool = 8, 1;
        /// Get LBA Status.
        lba_status: bool = 9, 1;
        /// Command and Feature Lockdown.
        lockdown: bool = 10, 1;
    }
}

bits! {
    /// ONCS: optional NVM commands.
    pub struct OptionalNvmCommands: u16 {
        /// Compare.
        compare: bool = 0, 1;
        /// Write Uncorrectable.
        write_uncorrectable: bool = 1, 1;
        /// Dataset Management.
        dsm: bool = 2, 1;
        /// Write Zeroes.
        write_zeroes: bool = 3, 1;
        /// Save in Set Features, Select in Get Features.
        save_select: bool = 4, 1;
        /// Reservations.
        reservations: bool = 5, 1;
        /// Timestamp.
        timestamp: bool = 6, 1;
        /// Verify.
        verify: bool = 7, 1;
        /// Copy.
        copy: bool = 8, 1;
    }
}

bits! {
    /// SGLS: SGL support.
    pub struct SglSupport: u32 {
        /// 01b: SGLs, any alignment. 10b: SGLs, dword alignment.
        support: u8 = 0, 2;
        /// Keyed SGL data block descriptors.
        keyed: bool = 2, 1;
        /// SGL descriptor threshold.
        threshold: u8 = 8, 8;
        /// Bit bucket descriptors.
        bit_bucket: bool = 16, 1;
        /// Byte-aligned contiguous metadata buffer.
        byte_aligned_metadata: bool = 17, 1;
        /// SGL longer than the data.
        oversized: bool = 18, 1;
        /// Metadata pointer may be an SGL.
        metadata_sgl: bool = 19, 1;
        /// The address field may be an offset, which in-capsule data requires.
        offset: bool = 20, 1;
        /// Transport SGL data block descriptors, which TCP requires.
        transport: bool = 21, 1;
    }
}

layout! {
    /// A power state descriptor, 32 bytes (NVMe base 2.0c figure 276). The struct has only the fields that a controller
    /// without power management needs.
    pub struct PowerState [32] {
        /// Maximum power, in centiwatts.
        mp_centiwatts: u16 = 0,
        /// Entry latency, microseconds.
        enlat_us: u32 = 4,
        /// Exit latency, microseconds.
        exlat_us: u32 = 8,
    }
}

layout! {
    /// Identify Controller, 4096 bytes.
    pub struct IdentifyController [4096] {
        /// PCI vendor ID.
        vid: u16 = 0,
        /// PCI subsystem vendor ID.
        ssvid: u16 = 2,
        /// Serial number.
        sn: Ascii<20> = 4,
        /// Model number.
        mn: Ascii<40> = 24,
        /// Firmware revision.
        fr: Ascii<8> = 64,
        /// Recommended arbitration burst, 2^this commands.
        rab: u8 = 72,
        /// IEEE OUI, least significant byte first.
        ieee: [u8; 3] = 73,
        /// Multi-path and sharing capabilities.
        cmic: MultipathCapabilities = 76,
        /// Maximum data transfer size, 2^this pages of CAP.MPSMIN; 0 for no limit.
        mdts: u8 = 77,
        /// Controller ID.
        cntlid: u16 = 78,
        /// Version, with the same value as the property VS.
        ver: crate::nvme::property::Version = 80,
        /// RTD3 resume latency, microseconds.
        rtd3r_us: u32 = 84,
        /// RTD3 entry latency, microseconds.
        rtd3e_us: u32 = 88,
        /// Optional asynchronous events.
        oaes: AsyncEventsSupported = 92,
        /// Controller attributes.
        ctratt: ControllerAttributes = 96,
        /// Read recovery levels.
        rrls: u16 = 100,
        /// Controller type: 1 I/O, 2 discovery, 3 administrative.
        cntrltype: u8 = 111,
        /// FRU GUID.
        fguid: [u8; 16] = 112,
        /// Command retry delay 1, in units of 100 ms.
        crdt1_100ms: u16 = 128,
        /// Command retry delay 2, in units of 100 ms.
        crdt2_100ms: u16 = 130,
        /// Command retry delay 3, in units of 100 ms.
        crdt3_100ms: u16 = 132,
        /// Management endpoint capabilities.
        mec: u8 = 255,
        /// Optional admin commands.
        oacs: OptionalAdminCommands = 256,
        /// Abort command limit, 0's based.
        acl: u8 = 258,
        /// Asynchronous event request limit, 0's based.
        aerl: u8 = 259,
        /// Firmware updates: bit 0 slot 1 read only, bits 3:1 slots, bit 4 activation without reset.
        frmw: u8 = 260,
        /// Log page attributes: bit 0 SMART by namespace, bit 1 commands and effects, bit 2 extended data.
        lpa: u8 = 261,
        /// Error log page entries, 0's based.
        elpe: u8 = 262,
        /// Number of power states, 0's based.
        npss: u8 = 263,
        /// Admin vendor specific command configuration.
        avscc: u8 = 264,
        /// Autonomous power state transitions.
        apsta: u8 = 265,
        /// Warning composite temperature threshold, kelvins.
        wctemp_kelvin: u16 = 266,
        /// Critical composite temperature threshold, kelvins.
        cctemp_kelvin: u16 = 268,
        /// Maximum time for firmware activation, in units of 100 ms.
        mtfa_100ms: u16 = 270,
        /// Total NVM capacity, bytes.
        tnvmcap_bytes: u128 = 280,
        /// Unallocated NVM capacity, bytes.
        unvmcap_bytes: u128 = 296,
        /// Replay protected memory block support.
        rpmbs: u32 = 312,
        /// Extended device self-test time, minutes.
        edstt_minutes: u16 = 316,
        /// Device self-test options.
        dsto: u8 = 318,
        /// Firmware update granularity, 4 KiB units.
        fwug: u8 = 319,
        /// Keep alive granularity, in units of 100 ms; 0 for no keep alive.
        kas_100ms: u16 = 320,
        /// Sanitize capabilities.
        sanicap: u32 = 328,
        /// Maximum number of NVM sets.
        nsetidmax: u16 = 338,
        /// Maximum number of endurance groups.
        endgidmax: u16 = 340,
        /// ANA transition time, seconds.
        anatt_s: u8 = 342,
        /// ANA capabilities: bits 4:0 the reported states, bit 6 ANAGRPID never changes while the namespace is attached,
        /// bit 7 ANAGRPID can be non-zero.
        anacap: u8 = 343,
        /// Largest ANA group identifier.
        anagrpmax: u32 = 344,
        /// Number of ANA group identifiers.
        nanagrpid: u32 = 348,
        /// Domain identifier.
        domainid: u16 = 356,
        /// Command quiesce time, milliseconds (NVMe base 2.1 figure 313): the time after the loss of an association in
        /// which its commands can still take effect. 0 means not reported.
        cqt_ms: u16 = 386,
        /// Submission queue entry size: bits 3:0 required, 7:4 maximum, as powers of two.
        sqes: u8 = 512,
        /// Completion queue entry size: bits 3:0 required, 7:4 maximum, as powers of two.
        cqes: u8 = 513,
        /// Maximum outstanding commands per I/O queue.
        maxcmd: u16 = 514,
        /// NN ("number of namespaces"): the largest valid NSID.
        nn: u32 = 516,
        /// Optional NVM commands.
        oncs: OptionalNvmCommands = 520,
        /// Fused operations: bit 0 Compare and Write.
        fuses: u16 = 522,
        /// Format NVM attributes.
        fna: u8 = 524,
        /// Volatile write cache: bit 0 present, bits 2:1 whether Flush supports NSID FFFFFFFFh (10b no, 11b yes).
        vwc: u8 = 525,
        /// Atomic write unit normal, blocks, 0's based.
        awun: u16 = 526,
        /// Atomic write unit power fail, blocks, 0's based.
        awupf: u16 = 528,
        /// I/O vendor specific command configuration.
        icsvscc: u8 = 530,
        /// Namespace write protection capabilities.
        nwpc: u8 = 531,
        /// Atomic compare and write unit, blocks, 0's based.
        acwu: u16 = 532,
        /// Copy descriptor formats.
        cdfs: u16 = 534,
        /// SGL support.
        sgls: SglSupport = 536,
        /// Maximum number of allowed namespaces.
        mnan: u32 = 540,
        /// Maximum domain namespace attachments.
        maxdna: u128 = 544,
        /// Maximum I/O controller namespace attachments.
        maxcna: u32 = 560,
        /// Subsystem NQN, NUL-terminated: see [`crate::fabrics::Nqn::field`].
        subnqn: [u8; 256] = 768,
        /// I/O queue command capsule size, 16-byte units: 4 is a bare command.
        ioccsz: u32 = 1792,
        /// I/O queue response capsule size, 16-byte units: 1.
        iorcsz: u32 = 1796,
        /// In-capsule data offset, 16-byte units: 0 for TCP.
        icdoff: u16 = 1800,
        /// Fabrics controller attributes: bit 0 is clear under the dynamic controller model.
        fcatt: u8 = 1802,
        /// Maximum SGL data block descriptors; 0 for no limit.
        msdbd: u8 = 1803,
        /// Optional fabrics commands: bit 0 Disconnect.
        ofcs: u16 = 1804,
        /// Power state 0.
        psd0: PowerState = 2048,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{assert_emits, bytes};

    #[test]
    fn golden() {
        let controller = IdentifyController {
            vid: 0x1234,
            sn: Ascii::new("S1").unwrap(),
            mn: Ascii::new("Trefoil").unwrap(),
            fr: Ascii::new("0.1").unwrap(),
            ieee: [1, 2, 3],
            cmic: MultipathCapabilities {
                multiple_controllers: true,
                ana_reporting: true,
                ..Default::default()
            },
            mdts: 5,
            cntlid: 0x0102,
            ver: crate::nvme::property::Version::V1_4,
            oaes: AsyncEventsSupported { namespace_attribute: true, ana_change: true, ..Default::default() },
            ctratt: ControllerAttributes {
                host_id_128: true,
                traffic_keep_alive: true,
                ..Default::default()
            },
            cntrltype: 1,
            crdt1_100ms: 2,
            acl: 3,
            aerl: 4,
            lpa: 6,
            kas_100ms: 10,
            anatt_s: 30,
            anacap: 0x1f,
            anagrpmax: 128,
            nanagrpid: 127,
            sqes: 0x66,
            cqes: 0x44,
            maxcmd: 128,
            nn: 1024,
            oncs: OptionalNvmCommands { dsm: true, write_zeroes: true, ..Default::default() },
            vwc: 7,
            acwu: 1,
            sgls: SglSupport { support: 1, offset: true, transport: true, ..Default::default() },
            mnan: 1024,
            subnqn: crate::fabrics::Nqn::DISCOVERY.field(),
            ioccsz: 516,
            iorcsz: 1,
            msdbd: 1,
            ofcs: 1,
            psd0: PowerState { mp_centiwatts: 100, ..Default::default() },
            ..Default::default()
        };
        let expected = bytes(&[
            (0, &[0x34, 0x12]),
            (4, b"S1                  Trefoil                                 0.1     "),
            (73, &[1, 2, 3, 0x0a, 5, 2, 1, 0, 4, 1]),
            (92, &[0, 9, 0, 0, 0x41]),
            (111, &[1]),
            (128, &[2]),
            (258, &[3, 4, 0, 6]),
            (320, &[10]),
            (342, &[30, 0x1f, 128, 0, 0, 0, 127]),
            (512, &[0x66, 0x44, 128, 0, 0, 4, 0, 0, 0x0c, 0, 0, 0, 0, 7]),
            (532, &[1]),
            (536, &[1, 0, 0x30, 0, 0, 4]),
            (768, b"nqn.2014-08.org.nvmexpress.discovery"),
            (1792, &[4, 2, 0, 0, 1]),
            (1803, &[1, 1]),
            (2048, &[100]),
        ]);
        assert_emits(&expected, |bytes| controller.emit(bytes));
        assert_eq!(IdentifyController::parse(&expected), controller);
    }
}
