//! Numbers, times and foreign text, written for people.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The last second that is written out: the end of the year 9999.
const LAST: u64 = 253_402_300_799;

/// Text that cannot become markup.
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '&' => formatter.write_str("&amp;"),
            '<' => formatter.write_str("&lt;"),
            '>' => formatter.write_str("&gt;"),
            '"' => formatter.write_str("&quot;"),
            '\'' => formatter.write_str("&#39;"),
            other => fmt::Write::write_char(formatter, other),
        })
    }
}

/// A number in groups of three digits, with narrow spaces that do not break.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit of which there is one.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count}\u{a0}B");
    }
    // The exponent of the unit is that of the number, in steps of ten bits.
    let step = count.ilog2() / 10;
    let value = count as f64 / (1_u64 << (step * 10)) as f64;
    format!("{value:.1}\u{a0}{}", UNITS[step as usize - 1])
}

/// Since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    // A clock before 1970 is as good as none.
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A span of time, by its two largest units, of which the symbols are the same in all languages.
pub(crate) fn ago(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Bits a second, in the units in which networks are sold.
pub(crate) fn bit_rate(bits: u64) -> String {
    const UNITS: [&str; 7] = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s", "Pbit/s", "Ebit/s"];
    let step = bits.checked_ilog10().unwrap_or(0) as usize / 3;
    let value = bits as f64 / 1_000_f64.powi(step as i32);
    // Digits that say something.
    let digits = usize::from(value < 100.0 && value.fract() >= 0.05);
    format!("{value:.digits$}\u{a0}{}", UNITS[step])
}

/// The month of a moment, by the calendar of UTC: the year and its number in it.
pub(crate) fn month(seconds: u64) -> String {
    let mut text = moment(seconds);
    text.truncate("2026-11".len());
    text
}

/// A moment, from seconds since 1970.
pub(crate) fn moment(seconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_becomes_text() {
        assert_eq!(Escaped("<a href=\"x\">&'").to_string(), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
        assert_eq!(
            [0, 1023, 1024, 1_572_864, u64::MAX].map(bytes),
            ["0\u{a0}B", "1023\u{a0}B", "1.0\u{a0}KiB", "1.5\u{a0}MiB", "16.0\u{a0}EiB"]
        );
        assert_eq!(
            [0, 1, 59, 60, 3_599, 3_600, 90_000, 200_000].map(ago),
            ["0 s", "1 s", "59 s", "1 min", "59 min", "1 h 0 min", "1 d 1 h", "2 d 7 h"]
        );
        assert_eq!(
            [0, 999, 1_000, 1_250_000, 12_500_000, 999_600_000, 10_000_000_000, u64::MAX].map(bit_rate),
            [
                "0\u{a0}bit/s",
                "999\u{a0}bit/s",
                "1\u{a0}kbit/s",
                "1.2\u{a0}Mbit/s",
                "12.5\u{a0}Mbit/s",
                "1000\u{a0}Mbit/s",
                "10\u{a0}Gbit/s",
                "18.4\u{a0}Ebit/s"
            ]
        );
        assert_eq!(month(1_795_603_590), "2026-11");
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
        assert_eq!(moment(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
