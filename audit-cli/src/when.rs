//! Points in time as people type and read them: "10m" ago, RFC 3339, or local time.

use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};

/// Microseconds since the Unix epoch, as the API has them.
pub type Micros = i64;

/// The reference that an argument is read against.
#[derive(Debug, Clone)]
pub struct Clock {
    pub now: Timestamp,
    pub zone: TimeZone,
}

impl Clock {
    pub fn system() -> Self {
        Self {
            now: Timestamp::now(),
            zone: TimeZone::system(),
        }
    }

    /// "10m", "1h30m", "2d" before now; "now", "today", "yesterday"; RFC 3339; local date and time.
    pub fn parse(&self, text: &str) -> Result<Micros, String> {
        let text = text.trim();
        self.read(text)
            .map(Timestamp::as_microsecond)
            .ok_or_else(|| {
                format!(
                    "{text:?} is not a time: write a duration before now (30s, 10m, 1h30m, 2d), \
                 RFC 3339 (2026-05-01T08:00:00Z) or local time (2026-05-01 08:00, 08:00, today)"
                )
            })
    }

    fn read(&self, text: &str) -> Option<Timestamp> {
        if let Some(ago) = duration(text) {
            return self.now.checked_sub(ago).ok();
        }
        if let Ok(instant) = text.parse::<Timestamp>() {
            return Some(instant);
        }
        let today = self.now.to_zoned(self.zone.clone()).date();
        let local = match text {
            "now" => return Some(self.now),
            "today" => today.at(0, 0, 0, 0),
            "yesterday" => today.yesterday().ok()?.at(0, 0, 0, 0),
            _ => match text.parse::<civil::Time>() {
                Ok(time) if text.contains(':') && !text.contains('-') => today.to_datetime(time),
                _ if text.contains('-') => text.parse::<civil::DateTime>().ok()?,
                _ => return None,
            },
        };
        self.zone.to_timestamp(local).ok()
    }

    /// "14:03:59.123", with the date before it where that is not today.
    pub fn local(&self, micros: Micros) -> String {
        let Ok(instant) = Timestamp::from_microsecond(micros) else {
            return micros.to_string();
        };
        let then = instant.to_zoned(self.zone.clone());
        let today = self.now.to_zoned(self.zone.clone()).date();
        let format = if then.date() == today {
            "%H:%M:%S.%3f"
        } else {
            "%Y-%m-%d %H:%M:%S.%3f"
        };
        then.strftime(format).to_string()
    }
}

/// Whole numbers with a unit, largest first: "1d", "1h30m". None for anything else.
pub fn duration(text: &str) -> Option<SignedDuration> {
    const UNITS: [(char, i64); 5] = [
        ('w', 604_800),
        ('d', 86_400),
        ('h', 3600),
        ('m', 60),
        ('s', 1),
    ];
    let mut rest = text;
    let mut total = SignedDuration::ZERO;
    let mut smaller = &UNITS[..];
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..end].parse().ok()?;
        let unit = rest[end..].chars().next()?;
        let at = smaller.iter().position(|(letter, _)| *letter == unit)?;
        total = total.checked_add(SignedDuration::from_secs(
            number.checked_mul(smaller[at].1)?,
        ))?;
        smaller = &smaller[at + 1..];
        rest = &rest[end + 1..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use audit_collector::json::rfc3339;

    use super::*;

    fn clock() -> Clock {
        Clock {
            now: "2026-05-02T10:00:00Z".parse().expect("a time"),
            zone: TimeZone::fixed(jiff::tz::offset(2)),
        }
    }

    fn read(text: &str) -> Result<String, String> {
        clock().parse(text).map(|t| rfc3339(t, 0))
    }

    #[test]
    fn durations_count_back_from_now() {
        assert_eq!(read("10m").as_deref(), Ok("2026-05-02T09:50:00.000000000Z"));
        assert_eq!(
            read("1h30m").as_deref(),
            Ok("2026-05-02T08:30:00.000000000Z")
        );
        assert_eq!(read("2d").as_deref(), Ok("2026-04-30T10:00:00.000000000Z"));
    }

    #[test]
    fn instants_and_local_times_are_read() {
        assert_eq!(
            read("2026-05-01T08:00:00Z").as_deref(),
            Ok("2026-05-01T08:00:00.000000000Z")
        );
        assert_eq!(
            read("2026-05-01T08:00:00+02:00").as_deref(),
            Ok("2026-05-01T06:00:00.000000000Z")
        );
        assert_eq!(
            read("2026-05-01 08:00").as_deref(),
            Ok("2026-05-01T06:00:00.000000000Z")
        );
        assert_eq!(
            read("2026-05-01").as_deref(),
            Ok("2026-04-30T22:00:00.000000000Z")
        );
        assert_eq!(
            read("08:00:01.5").as_deref(),
            Ok("2026-05-02T06:00:01.500000000Z")
        );
        assert_eq!(
            read("yesterday").as_deref(),
            Ok("2026-04-30T22:00:00.000000000Z")
        );
    }

    #[test]
    fn what_is_not_a_time_is_refused_by_name() {
        for bad in [
            "",
            "m",
            "10",
            "10x",
            "30m1h",
            "1m1m",
            "99999999999999d",
            "12-",
            "tomorrow",
            "20260501",
            "9:99",
        ] {
            let error = read(bad).expect_err(bad);
            assert!(
                error.contains(&format!("{bad:?}")) && error.contains("10m"),
                "{error}"
            );
        }
    }

    #[test]
    fn only_other_days_carry_their_date() {
        let at = |text: &str| clock().local(clock().parse(text).expect("a time"));
        assert_eq!(at("2026-05-02T07:08:09.123456Z"), "09:08:09.123");
        assert_eq!(at("2026-05-01T07:08:09Z"), "2026-05-01 09:08:09.000");
        assert_eq!(rfc3339(1, 5), "1970-01-01T00:00:00.000001005Z");
    }
}
