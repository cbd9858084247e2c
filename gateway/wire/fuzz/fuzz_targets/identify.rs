//! Parses the same bytes as every Identify data structure and as every log page of fixed size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trefoil_wire::nvme::identify::*;
use trefoil_wire::nvme::log::{
    ChangedNamespaces, CommandsAndEffects, ErrorEntry, FirmwareSlots, SmartLog,
};

macro_rules! stable {
    ($bytes:ident, $($type:ty),*) => {$(
        if let Some(bytes) = $bytes.first_chunk() {
            let value = <$type>::parse(bytes);
            let mut dirty = [0xff; <$type>::LEN];
            value.emit(&mut dirty);
            assert_eq!(<$type>::parse(&dirty), value);
        }
    )*};
}

fuzz_target!(|input: &[u8]| {
    let mut bytes = [0; IDENTIFY_LEN];
    for (to, from) in bytes.iter_mut().zip(input) {
        *to = *from;
    }
    stable!(
        bytes,
        IdentifyController,
        IdentifyNamespace,
        IdentifyNvmNamespace,
        IdentifyNvmController
    );
    stable!(bytes, IdentifyNamespaceIndependent, ErrorEntry, FirmwareSlots, SmartLog);

    let _ = IdentifyNamespace::parse(&bytes).format().block_bytes();
    assert!(NamespaceDescriptors::parse(&bytes).count() <= IDENTIFY_LEN / 5);
    assert!(NamespaceList::parse(&bytes).iter().count() <= NamespaceList::MAX);
    assert!(ControllerList::parse(&bytes).iter().count() <= ControllerList::MAX);
    assert!(UuidList::parse(&bytes).iter().count() <= 127);
    let _ = (ChangedNamespaces::parse(&bytes), CommandsAndEffects::parse(&bytes).admin(bytes[0]));
});
