//! The admin commands that an initiator sends by itself: bring-up, events, discovery, reset.

/// A position in the ANA log. A position with all zeros is the start of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LogPlace {
    pub offset: u32,
    /// The number of groups from the offset on; unknown (0) at the start.
    pub groups: u16,
}

/// One admin command. Its data, if any, goes to the controller's scratch block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BringupStep {
    Capabilities,
    Enable,
    /// Reads CSTS, until CSTS has the state that CC requested.
    Poll,
    Controller,
    EventConfig,
    Queues,
    Namespace,
    Descriptors,
    /// Reads the next piece of the ANA log.
    Ana(LogPlace),
    /// The end of bring-up, without a command.
    Ready,
    ChangedNamespaces,
    /// Reads a log page only to re-arm its event; the contents are ignored.
    Rearm {
        log_page: u8,
    },
    DiscoveryHeader,
    DiscoveryEntries,
    Reset,
    Shutdown,
}

impl BringupStep {
    pub fn name(self) -> &'static str {
        match self {
            Self::Capabilities => "Property Get CAP",
            Self::Enable => "Property Set CC.EN",
            Self::Poll => "Property Get CSTS",
            Self::Controller => "Identify Controller",
            Self::EventConfig => "Set Features Asynchronous Event Configuration",
            Self::Queues => "Set Features Number of Queues",
            Self::Namespace => "Identify Namespace",
            Self::Descriptors => "Identify Namespace Descriptors",
            Self::Ana(_) => "Get Log Page ANA",
            Self::Ready => "ready",
            Self::ChangedNamespaces => "Get Log Page Changed Namespace List",
            Self::Rearm { .. } => "Get Log Page",
            Self::DiscoveryHeader | Self::DiscoveryEntries => "Get Log Page Discovery",
            Self::Reset => "Property Set CC.EN (reset)",
            Self::Shutdown => "Property Set CC.SHN",
        }
    }

    /// Returns whether every failure of the step ends the association.
    pub fn is_essential(self) -> bool {
        !matches!(
            self,
            Self::EventConfig
                | Self::Descriptors
                | Self::Ana(_)
                | Self::ChangedNamespaces
                | Self::Rearm { .. }
        )
    }
}
