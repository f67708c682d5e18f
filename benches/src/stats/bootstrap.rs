//! Bootstrap intervals of a median.

use serde::{Deserialize, Serialize};

use super::normal::{normal_cdf, normal_quantile};
use super::order::{median, quantile_of_sorted};
use super::random::Random;

/// Resamples behind an interval. Between two seeds the ends of an interval
/// then differ by far less than the interval is wide.
const RESAMPLES: usize = 9999;
/// What lies outside a 95 % interval, at each end.
const TAIL: f64 = 0.025;

/// An interval of 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How an interval was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Bias-corrected and accelerated bootstrap (Efron 1987).
    Bca,
    /// Percentile bootstrap: where BCa is not defined for the samples.
    Percentile,
    /// All samples are the same; the interval is a point.
    Constant,
}

/// A median with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// Its 95 % interval; `None` from fewer than three values.
    pub interval: Option<Interval>,
    /// How the interval was found.
    pub method: Option<Method>,
    /// How many independent values (blocks) it is from.
    pub n: usize,
}

/// The median of `values` with its bootstrap interval, the same for the same
/// values in the same order and seed. `None` when there are no values.
///
/// Values must be finite.
pub fn estimate_median(values: &[f64], seed: u64) -> Option<Estimate> {
    let point = median(values)?;
    let n = values.len();
    let (interval, method) = if n < 3 {
        (None, None)
    } else if values
        .iter()
        .all(|value| (value - values[0]).abs() <= f64::EPSILON * values[0].abs())
    {
        (
            Some(Interval {
                low: point,
                high: point,
            }),
            Some(Method::Constant),
        )
    } else {
        let (interval, method) = bootstrap(values, point, seed, RESAMPLES);
        (Some(interval), Some(method))
    };
    Some(Estimate {
        median: point,
        interval,
        method,
        n,
    })
}

fn bootstrap(values: &[f64], point: f64, seed: u64, resamples: usize) -> (Interval, Method) {
    let mut random = Random::new(seed);
    let mut resample = vec![0.0; values.len()];
    let mut medians: Vec<f64> = (0..resamples)
        .map(|_| {
            for slot in &mut resample {
                *slot = values[random.below(values.len())];
            }
            median(&resample).unwrap_or(point)
        })
        .collect();
    medians.sort_by(f64::total_cmp);

    let bias = bias_correction(&medians, point);
    let (low, high, method) = match acceleration(values) {
        Some(acceleration) if bias.is_finite() => (
            corrected(TAIL, bias, acceleration),
            corrected(1.0 - TAIL, bias, acceleration),
            Method::Bca,
        ),
        _ => (TAIL, 1.0 - TAIL, Method::Percentile),
    };
    let at = |p| quantile_of_sorted(&medians, p).unwrap_or(point);
    (
        Interval {
            low: at(low),
            high: at(high),
        },
        method,
    )
}

/// How far the resampled statistic lies to one side of the point: the normal
/// quantile of the share of resamples below it, ties counted half (a median's
/// bootstrap distribution has many).
fn bias_correction(sorted: &[f64], point: f64) -> f64 {
    let below = sorted.partition_point(|&median| median < point);
    let ties = sorted.partition_point(|&median| median <= point) - below;
    normal_quantile((below as f64 + ties as f64 / 2.0) / sorted.len() as f64)
}

/// Acceleration by the jackknife; `None` when leaving one out changes nothing.
fn acceleration(values: &[f64]) -> Option<f64> {
    let mut left_out = Vec::with_capacity(values.len());
    for skip in 0..values.len() {
        let rest: Vec<f64> = values
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != skip)
            .map(|(_, value)| *value)
            .collect();
        left_out.push(median(&rest)?);
    }
    let mean = left_out.iter().sum::<f64>() / left_out.len() as f64;
    let squares: f64 = left_out.iter().map(|value| (mean - value).powi(2)).sum();
    let cubes: f64 = left_out.iter().map(|value| (mean - value).powi(3)).sum();
    let acceleration = cubes / (6.0 * squares.powf(1.5));
    acceleration.is_finite().then_some(acceleration)
}

fn corrected(p: f64, bias: f64, acceleration: f64) -> f64 {
    let shifted = bias + normal_quantile(p);
    normal_cdf(bias + shifted / (1.0 - acceleration * shifted))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One known answer.
    #[derive(Deserialize)]
    struct Known {
        name: String,
        values: Vec<f64>,
        median: f64,
        acceleration: Option<f64>,
        low: f64,
        high: f64,
        /// How much two correct implementations with different random numbers
        /// may differ.
        tolerance: f64,
    }

    #[test]
    fn agrees_with_scipy() {
        let known: Vec<Known> = serde_json::from_str(include_str!("known/scipy.json")).unwrap();
        assert!(known.len() >= 4);
        for case in known {
            let point = median(&case.values).unwrap();
            let (interval, method) = bootstrap(&case.values, point, 42, 99_999);
            assert_eq!(method, Method::Bca);
            assert!((point - case.median).abs() < 1e-12, "{}", case.name);
            if let Some(expected) = case.acceleration {
                let found = acceleration(&case.values).unwrap();
                assert!((found - expected).abs() < 1e-12, "{}: {found}", case.name);
            }
            assert!(
                (interval.low - case.low).abs() <= case.tolerance
                    && (interval.high - case.high).abs() <= case.tolerance,
                "{}: {interval:?}, SciPy has {}..{}",
                case.name,
                case.low,
                case.high
            );
        }
    }

    #[test]
    fn is_the_same_for_the_same_seed() {
        let values = [1.0, 2.5, 2.0, 4.0, 3.5, 8.0];
        assert_eq!(estimate_median(&values, 1), estimate_median(&values, 1));
    }

    #[test]
    fn few_or_equal_values_are_no_trouble() {
        assert_eq!(estimate_median(&[], 1), None);
        let one = estimate_median(&[3.0], 1).unwrap();
        assert_eq!((one.median, one.interval, one.n), (3.0, None, 1));
        let same = estimate_median(&[3.0; 8], 1).unwrap();
        assert_eq!(
            same.interval,
            Some(Interval {
                low: 3.0,
                high: 3.0
            })
        );
        let zeros = estimate_median(&[0.0; 4], 1).unwrap();
        assert_eq!(zeros.method, Some(Method::Constant));
    }

    #[test]
    fn the_interval_holds_the_true_median_about_as_often_as_it_says() {
        // 300 samples of 15 from an exponential distribution: skewed, as
        // latencies are. Its median is ln 2.
        let mut random = Random::new(99);
        let mut inside = 0;
        for trial in 0..300 {
            let values: Vec<f64> = (0..15)
                .map(|_| -((random.bits() >> 11) as f64 / (1_u64 << 53) as f64 + 1e-12).ln())
                .collect();
            let interval = estimate_median(&values, trial).unwrap().interval.unwrap();
            let truth = std::f64::consts::LN_2;
            inside += usize::from(interval.low <= truth && truth <= interval.high);
        }
        assert!((270..=298).contains(&inside), "{inside} of 300");
    }
}
