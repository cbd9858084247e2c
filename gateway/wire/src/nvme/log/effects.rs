//! Commands Supported and Effects, 05h, 4096 bytes: 256 admin and 256 I/O entries of 4 bytes by opcode (NVMe base 2.0c
//! §5.16.1.6, figures 210 and 211).

bits! {
    /// The effects of a command.
    pub struct CommandEffects: u32 {
        /// CSUPP: supported.
        supported: bool = 0, 1;
        /// LBCC: may change logical block content.
        block_content: bool = 1, 1;
        /// NCC: may change namespace capabilities.
        namespace_capability: bool = 2, 1;
        /// NIC: may change the inventory of namespaces.
        namespace_inventory: bool = 3, 1;
        /// CCC: may change controller capabilities.
        controller_capability: bool = 4, 1;
        /// CSE: 0 no restriction, 1 no other command on the namespace at the same time, 2 no other command on any namespace
        /// at the same time.
        submission: u8 = 16, 3;
        /// UUID selection supported.
        uuid_selection: bool = 19, 1;
        /// CSP: scope.
        scope: u16 = 20, 12;
    }
}

impl CommandEffects {
    /// Returns the effects of a supported command that changes nothing.
    pub fn supported() -> Self {
        Self { supported: true, ..Self::default() }
    }

    /// Returns the effects of a supported command that changes blocks.
    pub fn writes() -> Self {
        Self { supported: true, block_content: true, ..Self::default() }
    }
}

/// A view of the log's bytes.
#[derive(Clone, Copy, Debug)]
pub struct CommandsAndEffects<'a> {
    bytes: &'a [u8; 4096],
}

const IO_BASE: usize = 256;

impl<'a> CommandsAndEffects<'a> {
    /// Size in bytes.
    pub const LEN: usize = 4096;

    /// Reads the log.
    pub fn parse(bytes: &'a [u8; 4096]) -> Self {
        Self { bytes }
    }

    /// Returns the effects of an admin command.
    pub fn admin(&self, opcode: u8) -> CommandEffects {
        self.entry(opcode as usize)
    }

    /// Returns the effects of an I/O command.
    pub fn io(&self, opcode: u8) -> CommandEffects {
        self.entry(IO_BASE + opcode as usize)
    }

    /// Writes every byte: the given commands, and all other commands as unsupported.
    pub fn emit(admin: &[(u8, CommandEffects)], io: &[(u8, CommandEffects)], bytes: &mut [u8; 4096]) {
        bytes.fill(0);
        let (entries, _) = bytes.as_chunks_mut::<4>();
        let admin = admin.iter().map(|(opcode, effects)| (*opcode as usize, effects));
        let io = io.iter().map(|(opcode, effects)| (IO_BASE + *opcode as usize, effects));
        for (index, effects) in admin.chain(io) {
            if let Some(entry) = entries.get_mut(index) {
                *entry = effects.bits().to_le_bytes();
            }
        }
    }

    fn entry(&self, index: usize) -> CommandEffects {
        let (entries, _) = self.bytes.as_chunks::<4>();
        entries
            .get(index)
            .map(|entry| CommandEffects::from_bits(u32::from_le_bytes(*entry)))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let alone = CommandEffects { submission: 1, scope: 1, ..CommandEffects::supported() };
        let expected = crate::golden::bytes(&[(0x06 * 4, &[1, 0, 0x11]), (1024 + 4, &[3])]);
        crate::golden::assert_emits(&expected, |bytes| {
            CommandsAndEffects::emit(&[(0x06, alone)], &[(0x01, CommandEffects::writes())], bytes);
        });
        let log = CommandsAndEffects::parse(&expected);
        assert_eq!(log.admin(0x06), alone);
        assert_eq!(log.io(0x01), CommandEffects::writes());
        assert!(!log.io(0xff).supported);
    }
}
