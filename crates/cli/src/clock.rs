//! The one place where the program asks for the time or a random number: the core takes both as arguments.

use rallrec_core::ids::{RunId, TimeMs};
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{SystemTime, UNIX_EPOCH},
};

/// Now.
pub fn now() -> TimeMs {
    TimeMs(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64))
}

/// A new run's id: UTC date and time to the millisecond, so that ids sort by start, and four random hexadecimal digits.
pub fn new_run_id() -> RunId {
    // The standard library seeds each `RandomState` from the system.
    run_id(now(), RandomState::new().build_hasher().finish() as u16)
}

fn run_id(at: TimeMs, suffix: u16) -> RunId {
    let c = civil(at);
    RunId(format!(
        "{:04}{:02}{:02}-{:02}{:02}{:02}{:03}-{suffix:04x}",
        c.year,
        c.month,
        c.day,
        c.hour,
        c.minute,
        c.second,
        at.0 % 1000
    ))
}

/// `2026-11-23 05:45:01 UTC`.
pub fn readable(at: TimeMs) -> String {
    let c = civil(at);
    format!("{:04}-{:02}-{:02} {:02}:{:02}:{:02} UTC", c.year, c.month, c.day, c.hour, c.minute, c.second)
}

/// A duration for people: `0.31 s`, `42 s`, `3 min 05 s`, `2 h 10 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match seconds {
        s if s < 9.995 => format!("{s:.2} s"),
        s if s < 59.5 => format!("{whole} s"),
        s if s < 3599.5 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// The moment of an HTTP date, as servers write it: `Mon, 23 Nov 2026 05:45:01 GMT`.
pub fn from_http(date: &str) -> Option<TimeMs> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = date.split_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let month = 1 + MONTHS.iter().position(|name| *name == month)? as u64;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let time: Vec<u64> = time.split(':').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let [hour, minute, second] = time[..] else { return None };
    // As in `civil`, from the other end.
    let year = year.checked_sub(u64::from(month <= 2)).filter(|year| (1970..10_000).contains(year))?;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.checked_sub(1)?;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + of_year - 719_468;
    Some(TimeMs((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000))
}

struct Civil {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

/// Proleptic Gregorian UTC. Years are counted from March, so that the leap day is a year's last day; 400 years have
/// 146,097 days.
fn civil(at: TimeMs) -> Civil {
    let seconds = at.0 / 1000;
    // Days since 1 March of the year 0.
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March alternate 31 and 30 days in a pattern of 153 days every five months.
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    Civil { year, month, day, hour: seconds / 3600 % 24, minute: seconds / 60 % 60, second: seconds % 60 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_read_right() {
        // From `date -u -d @N`.
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (978_300_760, "2000-12-31 22:12:40 UTC"),
            (1_709_164_800, "2024-02-29 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(readable(TimeMs(seconds * 1000)), text);
        }
    }

    #[test]
    fn http_dates_are_read() {
        // From `date -u -R -d @N`.
        for (seconds, text) in [
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (978_300_760, "Sun, 31 Dec 2000 22:12:40 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(from_http(text), Some(TimeMs(seconds * 1000)), "{text}");
        }
        for text in ["", "yesterday", "Tue, 29 Foo 2000 00:00:00 GMT", "Tue, 29 Feb 2000 00:00 GMT"] {
            assert_eq!(from_http(text), None, "{text}");
        }
    }

    #[test]
    fn run_ids_sort_by_start() {
        let ids: Vec<_> = [(1_000, 0xffff), (1_001, 0), (2_000, 7), (978_300_760_000, 1)]
            .map(|(ms, suffix)| run_id(TimeMs(ms), suffix))
            .to_vec();
        assert!(ids.is_sorted());
        assert_eq!(ids[3].0, "20001231-221240000-0001");
        assert_ne!(new_run_id(), new_run_id());
    }

    #[test]
    fn durations_are_short() {
        for (s, text) in
            [(0.314, "0.31 s"), (9.999, "10 s"), (59.6, "1 min 00 s"), (185.2, "3 min 05 s"), (7800.0, "2 h 10 min")]
        {
            assert_eq!(duration(s), text);
        }
    }
}
