//! What a worker does with a record before it settles it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Error, bail};

/// Where the work on a record goes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Work {
    /// A frame is acked as it is read.
    #[default]
    None,
    /// Each record by itself, all that a stream holds side by side: an asynchronous worker.
    SideBySide(Distribution),
    /// One record of a stream after another: a worker that can do one thing.
    InTurn(Distribution),
}

/// How long it takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    Fixed(Duration),
    Uniform(Duration, Duration),
    Exponential(Duration),
}

impl Distribution {
    pub fn sample(self, random: &mut Random) -> Duration {
        match self {
            Self::Fixed(duration) => duration,
            Self::Uniform(from, to) => from + (to.saturating_sub(from)).mul_f64(random.unit()),
            Self::Exponential(mean) => mean.mul_f64(-(1.0 - random.unit()).ln()),
        }
    }
}

impl FromStr for Work {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(match text.split_once(':') {
            None if text == "none" => Self::None,
            Some(("delay", distribution)) => Self::SideBySide(distribution.parse()?),
            Some(("work", distribution)) => Self::InTurn(distribution.parse()?),
            _ => bail!("{text}: none, delay:DISTRIBUTION or work:DISTRIBUTION"),
        })
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::SideBySide(distribution) => write!(f, "delay:{distribution}"),
            Self::InTurn(distribution) => write!(f, "work:{distribution}"),
        }
    }
}

impl FromStr for Distribution {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(mean) = text.strip_prefix("exp:") {
            return Ok(Self::Exponential(duration(mean)?));
        }
        Ok(match text.split_once("..") {
            Some((from, to)) => Self::Uniform(duration(from)?, duration(to)?),
            None => Self::Fixed(duration(text)?),
        })
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |duration: &Duration| format!("{}ms", duration.as_secs_f64() * 1_000.0);
        match self {
            Self::Fixed(duration) => f.write_str(&ms(duration)),
            Self::Uniform(from, to) => write!(f, "{}..{}", ms(from), ms(to)),
            Self::Exponential(mean) => write!(f, "exp:{}", ms(mean)),
        }
    }
}

fn duration(text: &str) -> Result<Duration, Error> {
    let ms = text.strip_suffix("ms").with_context(|| format!("{text}: milliseconds, such as 5ms"))?;
    Ok(Duration::from_secs_f64(ms.parse::<f64>()? / 1_000.0))
}

/// xorshift: as random as a load has to be, and the same in each run.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_read_back() {
        for text in ["none", "delay:5ms", "work:1ms..10ms", "delay:exp:5ms", "work:0.5ms"] {
            assert_eq!(text.parse::<Work>().expect(text).to_string(), text);
        }
        for text in ["", "work", "work:5", "sleep:5ms"] {
            text.parse::<Work>().expect_err(text);
        }
    }

    #[test]
    fn distributions_have_the_mean_that_they_say() {
        for (text, mean_ms) in [("5ms", 5.0), ("2ms..8ms", 5.0), ("exp:5ms", 5.0)] {
            let (distribution, mut random) = (text.parse::<Distribution>().expect(text), Random::new(1));
            let total: Duration = (0..20_000).map(|_| distribution.sample(&mut random)).sum();
            let mean = total.as_secs_f64() * 1_000.0 / 20_000.0;
            assert!((mean - mean_ms).abs() < 0.2, "{text}: {mean}");
        }
    }
}
