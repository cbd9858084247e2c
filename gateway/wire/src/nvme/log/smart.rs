//! The SMART / Health Information log, 02h, 512 bytes (NVMe base 2.0c §5.16.1.3, figure 207).

bits! {
    /// Critical warnings.
    pub struct CriticalWarning: u8 {
        /// Available spare below its threshold.
        spare: bool = 0, 1;
        /// Temperature beyond a threshold.
        temperature: bool = 1, 1;
        /// Reliability degraded.
        reliability: bool = 2, 1;
        /// Media read only.
        read_only: bool = 3, 1;
        /// Volatile memory backup failed.
        backup: bool = 4, 1;
        /// Persistent memory region read only or unreliable.
        pmr: bool = 5, 1;
    }
}

layout! {
    /// Health since the controller was made.
    pub struct SmartLog [512] {
        /// Critical warnings.
        critical_warning: CriticalWarning = 0,
        /// Composite temperature, kelvins.
        temperature_kelvin: u16 = 1,
        /// Available spare, percent.
        available_spare: u8 = 3,
        /// Its threshold, percent.
        available_spare_threshold: u8 = 4,
        /// Percentage used, up to 255.
        percentage_used: u8 = 5,
        /// Endurance group critical warnings.
        endurance_group_warning: u8 = 6,
        /// Data read, in units of 1000 · 512 bytes, rounded up.
        data_units_read: u128 = 32,
        /// Data written, in units of 1000 · 512 bytes, rounded up.
        data_units_written: u128 = 48,
        /// Read commands.
        host_reads: u128 = 64,
        /// Write commands.
        host_writes: u128 = 80,
        /// Busy time, minutes.
        busy_minutes: u128 = 96,
        /// Power cycles.
        power_cycles: u128 = 112,
        /// Power on hours.
        power_on_hours: u128 = 128,
        /// Unsafe shutdowns.
        unsafe_shutdowns: u128 = 144,
        /// Media and data integrity errors.
        media_errors: u128 = 160,
        /// Entries ever made in the error log.
        error_entries: u128 = 176,
        /// Minutes above the warning temperature.
        warning_minutes: u32 = 192,
        /// Minutes above the critical temperature.
        critical_minutes: u32 = 196,
    }
}
