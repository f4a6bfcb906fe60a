//! Cron lines: how they are written, and when they come next, in UTC. Pure; knows no clock, nor what is done then.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::{Timestamp, civil_from_days};

const SECONDS_A_DAY: u64 = 86_400;
/// A line that does not come in so many days never comes: 29 February can be eight years away (1896 to 1904).
const HORIZON_DAYS: u64 = 8 * 366;
/// 1970-01-01 was a Thursday; Sunday is 0.
const FIRST_WEEKDAY: u64 = 4;

/// Why a text is no cron line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{line}' is no time to wake at ({why}); write it as a cron line in UTC, as 30 3 * * 1-5: minute, hour, day of \
     the month, month, day of the week"
)]
pub struct CronError {
    line: String,
    why: String,
}

/// `minute hour day-of-month month day-of-week`, each `*` or a list of numbers and ranges, both with `/step`. Where both
/// days are restricted, either is enough (crontab(5)). Sunday is 0 or 7.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cron {
    text: String,
    /// Bit sets of what matches.
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether both days are restricted.
    either_day: bool,
}

impl Cron {
    /// The first time after `after` at which it comes; `None` when the calendar ends before.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        // Whole minutes; the one that has begun is over.
        let minute = after.micros() / 60_000_000 + 1;
        let (first_day, of_day) = (minute / (24 * 60), minute % (24 * 60));
        (first_day..=first_day + HORIZON_DAYS).find_map(|day| {
            if !self.on(day) {
                return None;
            }
            let from = if day == first_day { of_day } else { 0 };
            let minute = (from..24 * 60)
                .find(|minute| has(self.hours, minute / 60) && has(self.minutes, minute % 60))?;
            let at = (day * SECONDS_A_DAY + minute * 60).checked_mul(1_000_000)?;
            Some(Timestamp::from_micros(at)).filter(|found| found.micros() == at)
        })
    }

    fn on(&self, day: u64) -> bool {
        let (_, month, of_month) = civil_from_days(day);
        let of_week = (day + FIRST_WEEKDAY) % 7;
        let (by_month, by_week) = (has(self.days, of_month), has(self.weekdays, of_week));
        has(self.months, month)
            && if self.either_day {
                by_month || by_week
            } else {
                by_month && by_week
            }
    }
}

fn has(set: u64, number: u64) -> bool {
    set >> number & 1 == 1
}

/// What one field matches.
fn field(text: &str, name: &str, all: RangeInclusive<u64>) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no {name}: {} to {}", all.start(), all.end());
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|number| digits && all.contains(number));
        number.ok_or_else(wrong)
    };
    let mut set = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (*all.start(), *all.end()),
            Some((first, last)) => (number(first)?, number(last)?),
            None if step.is_some() => (number(range)?, *all.end()),
            None => (number(range)?, number(range)?),
        };
        let step = step.map_or(Ok(1), |step| step.parse::<usize>().map_err(|_| wrong()))?;
        if first > last || step == 0 {
            return Err(wrong());
        }
        for number in (first..=last).step_by(step) {
            set |= 1 << number;
        }
    }
    Ok(set)
}

impl FromStr for Cron {
    type Err = CronError;

    fn from_str(line: &str) -> Result<Self, CronError> {
        let error = |why: String| CronError {
            line: line.to_owned(),
            why,
        };
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(error(format!("it has {} fields, not 5", fields.len())));
        };
        let either_day = !days.starts_with('*') && !weekdays.starts_with('*');
        let of_week = field(weekdays, "day of the week", 0..=7).map_err(error)?;
        let cron = Cron {
            text: fields.join(" "),
            minutes: field(minutes, "minute", 0..=59).map_err(error)?,
            hours: field(hours, "hour", 0..=23).map_err(error)?,
            days: field(days, "day of the month", 1..=31).map_err(error)?,
            months: field(months, "month", 1..=12).map_err(error)?,
            weekdays: (of_week | of_week >> 7) & 0x7f,
            either_day,
        };
        if cron.next_after(Timestamp::from_micros(0)).is_none() {
            return Err(error("there is no such day".to_owned()));
        }
        Ok(cron)
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Cron {
    type Error = CronError;

    fn try_from(text: String) -> Result<Self, CronError> {
        text.parse()
    }
}

impl From<Cron> for String {
    fn from(cron: Cron) -> String {
        cron.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use proptest::prelude::*;

    fn next(line: &str, after: &str) -> String {
        let next = line.parse::<Cron>().unwrap().next_after(after.parse().unwrap());
        next.unwrap().to_string().replace(":00.000000Z", "")
    }

    #[test]
    fn a_line_comes_at_the_minutes_it_names_and_never_twice_in_one() {
        for (line, after, then) in [
            ("* * * * *", "2026-11-26T13:05:00Z", "2026-11-26T13:06"),
            ("* * * * *", "2026-11-26T13:05:59Z", "2026-11-26T13:06"),
            ("30 3 * * *", "2026-11-26T03:29:59Z", "2026-11-26T03:30"),
            ("30 3 * * *", "2026-11-26T03:30:00Z", "2026-11-27T03:30"),
            ("*/20 * * * *", "2026-12-31T23:41:00Z", "2027-01-01T00:00"),
            ("5,10-12/2 * * * *", "2026-11-26T13:10:00Z", "2026-11-26T13:12"),
            ("50/5 * * * *", "2026-11-26T13:50:00Z", "2026-11-26T13:55"),
            ("0 0 29 2 *", "2026-11-26T00:00:00Z", "2028-02-29T00:00"),
            // 2026-11-26 is a Thursday.
            ("0 8 * * 1-5", "2026-11-27T08:00:00Z", "2026-11-30T08:00"),
            ("0 8 * * 7", "2026-11-26T08:00:00Z", "2026-11-29T08:00"),
            ("0 8 1 * 0", "2026-11-26T08:00:00Z", "2026-11-29T08:00"),
            ("0 8 1 * 0", "2026-11-29T08:00:00Z", "2026-12-01T08:00"),
            ("0 8 */2 * 0", "2026-11-26T08:00:00Z", "2026-11-29T08:00"),
        ] {
            assert_eq!(next(line, after), then, "{line} after {after}");
        }
    }

    #[test]
    fn what_is_no_line_or_never_comes_is_refused_with_how_to_write_it() {
        for line in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "5-1 * * * *",
            "*/0 * * * *",
            "+5 * * * *",
            "x * * * *",
            ", * * * *",
            "0 0 31 2 *",
            "@daily",
            "99999999999999999999 * * * *",
            "*/99999999999999999999999 * * * *",
        ] {
            let error = line.parse::<Cron>().expect_err(line).to_string();
            assert!(error.contains("; write it as a cron line in UTC"), "{error}");
        }
    }

    proptest! {
        /// No text and no time is too strange; what comes is later, within the calendar, and the first.
        #[test]
        fn the_next_time_is_later_and_the_first(
            minute in 0u64..60, hour in 0u64..24, after in 0u64..4_000_000_000,
        ) {
            let cron: Cron = format!("{minute} {hour} * * *").parse().unwrap();
            let after = Timestamp::from_micros(after * 1_000_000);
            let next = cron.next_after(after).unwrap();
            let seconds = next.micros() / 1_000_000;
            prop_assert!(next > after && next.since(after) <= Duration::from_secs(SECONDS_A_DAY));
            prop_assert_eq!((seconds / 60 % 60, seconds / 3600 % 24, seconds % 60), (minute, hour, 0));
        }

        #[test]
        fn any_text_is_a_line_or_an_error(text in "[0-9*/, -]{0,24}", after: u64) {
            if let Ok(cron) = text.parse::<Cron>() {
                let after = Timestamp::from_micros(after);
                prop_assert!(cron.next_after(after).is_none_or(|next| next > after));
                prop_assert_eq!(String::from(cron.clone()).parse::<Cron>(), Ok(cron));
            }
        }
    }
}
