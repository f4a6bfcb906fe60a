//! How durations, sizes and times are written: in agent.toml, on the command line, in JSON and in
//! tables. Integer arithmetic only, so that what is written is what is meant. Knows nothing of apps.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Why a text is no duration, size or time. The message says how to write one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("'{0}' is not a duration; write it as 500ms, 10s, 5m, 2h, 1d or 1m30s")]
    Duration(String),
    /// Not a duration and not `never`.
    #[error("'{0}' is not a duration; write it as 500ms, 10s, 5m, 2h, 1d, 1m30s, or \"never\"")]
    Wait(String),
    /// Not a size.
    #[error("'{0}' is not a size; write it as 64K, 256M, 4G (powers of 1024) or as a plain number of bytes")]
    Size(String),
    /// Not a point in time.
    #[error("'{0}' is not a time; write it in RFC 3339, in UTC, as 2026-01-31T09:30:00Z")]
    Time(String),
}

const DURATION_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Reads `500ms`, `10s`, `5m`, `2h`, `1d`, or several of them together (`1m30s`). A number without a
/// unit is refused: it would be guessed wrongly half of the time.
///
/// # Errors
/// [`UnitError::Duration`] for anything else, and for what does not fit into 64 bits of milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let error = || UnitError::Duration(text.to_owned());
    let mut rest = text.trim();
    let mut millis = 0u64;
    if rest.is_empty() {
        return Err(error());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
        let number: u64 = rest[..digits].parse().map_err(|_| error())?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (_, scale) = DURATION_UNITS
            .iter()
            .find(|(name, _)| *name == &rest[..unit_len])
            .ok_or_else(error)?;
        rest = &rest[unit_len..];
        millis = number
            .checked_mul(*scale)
            .and_then(|part| millis.checked_add(part))
            .ok_or_else(error)?;
    }
    Ok(Duration::from_millis(millis))
}

/// Writes a duration so that [`parse_duration`] reads the same back, down to the millisecond: `1m30s`.
pub fn format_duration(duration: Duration) -> String {
    let mut millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (name, scale) in DURATION_UNITS {
        let count = millis / u128::from(scale);
        if count > 0 {
            text.push_str(&format!("{count}{name}"));
            millis %= u128::from(scale);
        }
    }
    text
}

/// A duration for a table, in its one largest unit: `3h`. Below a second, milliseconds.
pub fn format_age(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (name, scale) in DURATION_UNITS {
        if millis >= u128::from(scale) {
            return format!("{}{name}", millis / u128::from(scale));
        }
    }
    "0s".to_owned()
}

/// How long to wait: some time, or `never`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Wait {
    /// After this long.
    After(Duration),
    /// Not at all.
    Never,
}

impl Wait {
    /// A whole number of seconds.
    pub const fn secs(seconds: u64) -> Self {
        Wait::After(Duration::from_secs(seconds))
    }
}

impl FromStr for Wait {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text == "never" {
            return Ok(Wait::Never);
        }
        parse_duration(text)
            .map(Wait::After)
            .map_err(|_| UnitError::Wait(text.to_owned()))
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::After(duration) => f.write_str(&format_duration(*duration)),
            Wait::Never => f.write_str("never"),
        }
    }
}

impl TryFrom<String> for Wait {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<Wait> for String {
    fn from(wait: Wait) -> Self {
        wait.to_string()
    }
}

const SIZE_UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// A number of bytes, written `256M` (powers of 1024, as everywhere in Linux' memory interfaces).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = UnitError;

    /// `256M`, `256MiB`, `4096`. `256MB` is refused: half of its readers mean 10^6 by it.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError::Size(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(trimmed.len());
        let number: u64 = trimmed[..digits].parse().map_err(|_| error())?;
        let unit = &trimmed[digits..];
        let unit = unit.strip_suffix("iB").unwrap_or(unit);
        let shift = match SIZE_UNITS
            .iter()
            .find(|(name, _)| unit.len() == 1 && unit.starts_with(*name))
        {
            Some((_, shift)) => *shift,
            None if unit.is_empty() && !trimmed.ends_with("iB") => 0,
            None => return Err(error()),
        };
        number.checked_mul(1 << shift).map(Size).ok_or_else(error)
    }
}

impl fmt::Display for Size {
    /// Exact: the largest unit that divides the number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, shift) in SIZE_UNITS {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{name}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl TryFrom<String> for Size {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

/// A number of bytes for a table, rounded to one decimal: `62.4M`.
pub fn format_bytes(bytes: u64) -> String {
    for (name, shift) in SIZE_UNITS {
        if bytes >= 1 << shift {
            let tenths = ((u128::from(bytes) * 10) + (1 << (shift - 1))) >> shift;
            return format!("{}.{}{name}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes}B")
}

/// A point in time, UTC, to the microsecond; written in RFC 3339 with a fixed width
/// (`2026-01-31T09:30:00.000000Z`), so that texts sort as times do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(u64);

/// Number of characters of a written [`Timestamp`].
pub const TIMESTAMP_LEN: usize = 27;

/// The last microsecond of the year 9999: later years would need a fifth digit.
const LAST_MICROSECOND: u64 = 253_402_300_799_999_999;

impl Timestamp {
    /// The wall clock's time now. A clock set before 1970 reads as 1970.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// From microseconds since 1970; what is beyond the year 9999 reads as its end.
    pub fn from_micros(micros: u64) -> Self {
        Timestamp(micros.min(LAST_MICROSECOND))
    }

    /// Microseconds since 1970.
    pub fn micros(self) -> u64 {
        self.0
    }

    /// Time passed from `earlier` to this one; zero when the clock was set back meanwhile.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The time so much later; what is beyond the year 9999 reads as its end.
    pub fn after(self, time: Duration) -> Self {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self::from_micros(self.0.saturating_add(micros))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let micros = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros());
        Timestamp::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"
        )
    }
}

impl FromStr for Timestamp {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse_timestamp(text).ok_or_else(|| UnitError::Time(text.to_owned()))
    }
}

impl TryFrom<String> for Timestamp {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let digits = |part: &str| -> Option<u64> {
        part.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| part.parse().ok())
            .flatten()
    };
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(digits);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut time = time.splitn(3, ':').map(digits);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if fraction.is_empty() || fraction.len() > 6 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let micros = digits(&format!("{fraction:0<6}"))?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let days = days_from_civil(year, month, day);
    // The 31st of a shorter month is a day of the next one: refuse it.
    if civil_from_days(days) != (year, month, day) {
        return None;
    }
    Some(Timestamp(
        (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + micros,
    ))
}

/// Days since 1970-01-01 to (year, month, day) of the Gregorian calendar. The year is counted from
/// March, so that the leap day is its last one.
pub fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days since 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The candidate that a mistyped word most likely meant: at most a third of its letters wrong.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.chars().count().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions and replacements that make `a` into `b`, bounded to short words.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_written() {
        for (text, millis) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("1m30s", 90_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "10",
            "s",
            "1.5s",
            "-1s",
            "10 s",
            "10sec",
            "never",
            "1µs",
            "99999999999999999999s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!("soon".parse::<Wait>().is_err());
    }

    #[test]
    fn sizes_are_read_as_written() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64K", 65536),
            ("256M", 256 << 20),
            ("4GiB", 4 << 30),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in [
            "",
            "M",
            "256MB",
            "256 M",
            "1.5G",
            "-1",
            "256m",
            "iB",
            "5iB",
            "99999999999T",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_and_ages_are_short_in_tables() {
        for (bytes, text) in [(0, "0B"), (1023, "1023B"), (1536, "1.5K"), (65_431_142, "62.4M")] {
            assert_eq!(format_bytes(bytes), text);
        }
        assert!(!format_bytes(u64::MAX).is_empty());
        for (millis, text) in [(0, "0s"), (7, "7ms"), (59_999, "59s"), (7_300_000, "2h")] {
            assert_eq!(format_age(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn times_are_rfc_3339_in_utc() {
        assert_eq!(
            Timestamp::from_micros(0).to_string(),
            "1970-01-01T00:00:00.000000Z"
        );
        assert_eq!(
            Timestamp::from_micros(1_709_210_096_000_001).to_string(),
            "2024-02-29T12:34:56.000001Z"
        );
        assert_eq!(
            Timestamp::from_micros(u64::MAX).to_string(),
            "9999-12-31T23:59:59.999999Z"
        );
        assert_eq!(
            "2024-02-29T12:34:56.5Z".parse(),
            Ok(Timestamp::from_micros(1_709_210_096_500_000))
        );
        for text in [
            "",
            "2023-02-29T00:00:00Z",
            "2024-02-29 12:34:56Z",
            "2024-02-29T24:00:00Z",
            "2024-02-29T12:34:56",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_mistyped_word_finds_its_neighbour() {
        let keys = ["idle", "cold_after", "capabilities"];
        assert_eq!(nearest("idel", keys), Some("idle"));
        assert_eq!(nearest("colt_after", keys), Some("cold_after"));
        assert_eq!(nearest("capabilites", keys), Some("capabilities"));
        assert_eq!(nearest("wibble", keys), None);
    }

    proptest! {
        #[test]
        fn a_duration_is_read_back_as_it_was(millis in any::<u64>()) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn a_size_is_read_back_as_it_was(bytes in any::<u64>()) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }

        #[test]
        fn a_time_is_read_back_as_it_was_and_has_a_fixed_width(micros in 0..=LAST_MICROSECOND) {
            let text = Timestamp(micros).to_string();
            prop_assert_eq!(text.len(), TIMESTAMP_LEN);
            prop_assert_eq!(text.parse(), Ok(Timestamp(micros)));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,40}") {
            let _ = (parse_duration(&text), text.parse::<Size>(), text.parse::<Timestamp>(), text.parse::<Wait>());
        }
    }
}
