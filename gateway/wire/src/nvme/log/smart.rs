//! The SMART / Health Information log, 02h, 512 bytes (NVMe base 2.0c §5.16.1.3, figure 207).

bits! {
    /// Critical warnings.
    pub struct CriticalWarning: u8 {
        /// Available spare below its threshold.
        spare: bool = 0, 1;
        /// Temperature above or below a threshold.
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
    /// Health information. Counters count since the controller was made.
    pub struct SmartLog [512] {
        /// Critical warnings.
        critical_warning: CriticalWarning = 0,
        /// Composite temperature, kelvins.
        temperature_kelvin: u16 = 1,
        /// Available spare, percent.
        available_spare: u8 = 3,
        /// Threshold of the available spare, percent.
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
        /// Number of error log entries since the controller was made.
        error_entries: u128 = 176,
        /// Minutes above the warning temperature.
        warning_minutes: u32 = 192,
        /// Minutes above the critical temperature.
        critical_minutes: u32 = 196,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let smart = SmartLog {
            critical_warning: CriticalWarning { read_only: true, ..Default::default() },
            temperature_kelvin: 300,
            available_spare: 100,
            available_spare_threshold: 10,
            percentage_used: 1,
            data_units_read: 2,
            data_units_written: 3,
            host_reads: 4,
            host_writes: 5,
            busy_minutes: 6,
            power_cycles: 7,
            power_on_hours: 8,
            unsafe_shutdowns: 9,
            media_errors: 10,
            error_entries: 11,
            warning_minutes: 12,
            critical_minutes: 13,
            ..Default::default()
        };
        let mut expected = crate::golden::bytes(&[(0, &[8, 0x2c, 1, 100, 10, 1]), (192, &[12, 0, 0, 0, 13])]);
        for (at, value) in (32..192).step_by(16).zip(2..) {
            expected[at] = value;
        }
        crate::golden::assert_emits(&expected, |bytes| smart.emit(bytes));
        assert_eq!(SmartLog::parse(&expected), smart);
    }
}
