//! Controller properties (NVMe base 2.0c §3.1.3), which Property Get and Property Set read and write.

/// Offsets of the properties that fabrics controllers have (NVMe base 2.0c figure 35).
#[allow(missing_docs)]
pub mod offset {
    pub const CAP: u32 = 0x00;
    pub const VS: u32 = 0x08;
    pub const CC: u32 = 0x14;
    pub const CSTS: u32 = 0x1c;
    pub const NSSR: u32 = 0x20;
    pub const CRTO: u32 = 0x68;
}

/// The value that makes NSSR reset the subsystem: "NVMe" (NVMe base 2.0c §3.1.3.7).
pub const NSSR_RESET: u32 = 0x4e56_4d65;

bits! {
    /// Controller Capabilities, 8 bytes (NVMe base 2.0c §3.1.3.1, figure 36).
    pub struct Cap: u64 {
        /// Maximum Queue Entries Supported, 0's based.
        mqes: u16 = 0, 16;
        /// Contiguous Queues Required; 1 over fabrics.
        cqr: bool = 16, 1;
        /// Arbitration mechanisms supported.
        ams: u8 = 17, 2;
        /// Timeout: the longest time until CSTS.RDY changes after a change of CC.EN, in units of 500 ms.
        to_500ms: u8 = 24, 8;
        /// Doorbell stride; 0 over fabrics.
        dstrd: u8 = 32, 4;
        /// NVM Subsystem Reset supported.
        nssrs: bool = 36, 1;
        /// Command sets supported: bit 0 NVM, bit 6 one or more by I/O command set, bit 7 admin only.
        css: u8 = 37, 8;
        /// Boot partitions supported.
        bps: bool = 45, 1;
        /// Controller power scope.
        cps: u8 = 46, 2;
        /// The smallest memory page has 2^(12 + this) bytes.
        mpsmin: u8 = 48, 4;
        /// The largest memory page has 2^(12 + this) bytes.
        mpsmax: u8 = 52, 4;
        /// Persistent memory region supported.
        pmrs: bool = 56, 1;
        /// Controller memory buffer supported.
        cmbs: bool = 57, 1;
        /// NVM Subsystem Shutdown supported.
        nsss: bool = 58, 1;
        /// Controller Ready With Media supported.
        crwms: bool = 59, 1;
        /// Controller Ready Independent of Media supported.
        crims: bool = 60, 1;
    }
}

bits! {
    /// Version, 4 bytes (NVMe base 2.0c §3.1.3.2).
    pub struct Version: u32 {
        /// Tertiary version.
        tertiary: u8 = 0, 8;
        /// Minor version.
        minor: u8 = 8, 8;
        /// Major version.
        major: u16 = 16, 16;
    }
}

impl Version {
    /// 1.3.0, the first version with Identify namespace descriptor lists.
    pub const V1_3: Self = Self { major: 1, minor: 3, tertiary: 0 };
    /// 1.4.0.
    pub const V1_4: Self = Self { major: 1, minor: 4, tertiary: 0 };
    /// 2.0.0.
    pub const V2_0: Self = Self { major: 2, minor: 0, tertiary: 0 };
}

bits! {
    /// Controller Configuration, 4 bytes (NVMe base 2.0c §3.1.3.5, figure 46).
    pub struct Cc: u32 {
        /// Enable.
        en: bool = 0, 1;
        /// I/O command set selected: 000b NVM, 110b all supported, 111b admin only.
        css: u8 = 4, 3;
        /// A memory page has 2^(12 + this) bytes.
        mps: u8 = 7, 4;
        /// Arbitration mechanism selected.
        ams: u8 = 11, 3;
        /// Shutdown notification: 0 none, 1 normal, 2 abrupt.
        shn: u8 = 14, 2;
        /// An I/O submission queue entry has 2^this bytes. The value is 6.
        iosqes: u8 = 16, 4;
        /// An I/O completion queue entry has 2^this bytes. The value is 4.
        iocqes: u8 = 20, 4;
        /// Controller Ready Independent of Media enable.
        crime: bool = 24, 1;
    }
}

bits! {
    /// Controller Status, 4 bytes (NVMe base 2.0c §3.1.3.6, figure 47).
    pub struct Csts: u32 {
        /// Ready.
        rdy: bool = 0, 1;
        /// Controller Fatal Status.
        cfs: bool = 1, 1;
        /// Shutdown status: 0 none, 1 in progress, 2 complete.
        shst: u8 = 2, 2;
        /// NVM Subsystem Reset occurred.
        nssro: bool = 4, 1;
        /// Processing paused.
        pp: bool = 5, 1;
        /// Shutdown type: true for a shutdown of the whole subsystem.
        st: bool = 6, 1;
    }
}

bits! {
    /// Controller Ready Timeouts, 4 bytes (NVMe base 2.0c §3.1.3.22).
    pub struct Crto: u32 {
        /// Ready with media, in units of 500 ms.
        crwmt_500ms: u16 = 0, 16;
        /// Ready independent of media, in units of 500 ms.
        crimt_500ms: u16 = 16, 16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let cap =
            Cap { mqes: 127, cqr: true, to_500ms: 15, css: 1, nssrs: true, crwms: true, ..Cap::default() };
        assert_eq!(cap.bits(), 0x0800_0030_0f01_007f);
        assert_eq!(Cap::from_bits(cap.bits()), cap);
        assert_eq!(Version::V1_4.bits(), 0x0001_0400);
        // The value that Linux writes to enable a controller.
        let cc = Cc::from_bits(0x0046_0001);
        assert_eq!(cc, Cc { en: true, iosqes: 6, iocqes: 4, ..Cc::default() });
        assert_eq!(Cc { shn: 1, ..cc }.bits(), 0x0046_4001);
        assert_eq!(Csts { rdy: true, cfs: true, shst: 2, ..Csts::default() }.bits(), 0xb);
        assert_eq!(Crto { crwmt_500ms: 2, crimt_500ms: 1 }.bits(), 0x0001_0002);
    }
}
