//! Several measurements of one thing.

use serde::Serialize;

/// The middle and the ends of several runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub runs: usize,
}

impl Spread {
    /// `None`: nothing was measured.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, min, max, runs: values.len() })
    }

    /// Runs of the same minutes, one by one: what a busy machine does to one it does to the other.
    pub fn ratios(of: &[f64], to: &[f64]) -> Option<Self> {
        Self::of(of.iter().zip(to).map(|(of, to)| of / to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_odd_and_even_counts() {
        let found = Spread::of([3.0, 1.0, 2.0]).expect("three values");
        assert_eq!((found.median, found.min, found.max, found.runs), (2.0, 1.0, 3.0, 3));
        assert_eq!(Spread::of([1.0, 2.0]).expect("two values").median, 1.5);
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN]), None);
    }

    #[test]
    fn ratios_are_of_pairs() {
        // The machine was twice as slow in the second pair.
        let found = Spread::ratios(&[1.5, 3.0], &[1.0, 2.0]).expect("two pairs");
        assert_eq!((found.min, found.max), (1.5, 1.5));
    }
}
