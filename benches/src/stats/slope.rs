//! Slopes: memory against the number of instances.

use serde::{Deserialize, Serialize};

use super::order::median;

/// A straight line.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Rise of y for each x.
    pub slope: f64,
    /// y where x is 0.
    pub intercept: f64,
}

/// The Theil-Sen line: the median of the slopes between all pairs of points.
/// Up to 29 % of the points may be anything without moving it far. `None`
/// unless two points differ in x.
pub fn theil_sen(points: &[(f64, f64)]) -> Option<Line> {
    let mut slopes = Vec::new();
    for (index, (x1, y1)) in points.iter().enumerate() {
        for (x2, y2) in &points[index + 1..] {
            if (x2 - x1).abs() > f64::EPSILON {
                slopes.push((y2 - y1) / (x2 - x1));
            }
        }
    }
    let slope = median(&slopes)?;
    let rests: Vec<f64> = points.iter().map(|(x, y)| y - slope * x).collect();
    Some(Line {
        slope,
        intercept: median(&rests)?,
    })
}

/// The least-squares line. `None` unless two points differ in x.
pub fn least_squares(points: &[(f64, f64)]) -> Option<Line> {
    let n = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / n;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / n;
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let together: f64 = points
        .iter()
        .map(|(x, y)| (x - mean_x) * (y - mean_y))
        .sum();
    let slope = together / spread;
    slope.is_finite().then_some(Line {
        slope,
        intercept: mean_y - slope * mean_x,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agree_with_scipy() {
        // scipy.stats.theilslopes / linregress
        let points = [(0.0, 1.0), (1.0, 3.1), (2.0, 4.9), (3.0, 7.2), (4.0, 30.0)];
        let robust = theil_sen(&points).unwrap();
        assert!((robust.slope - 2.2).abs() < 1e-9, "{robust:?}");
        let least = least_squares(&points).unwrap();
        assert!((least.slope - 6.21).abs() < 1e-9, "{least:?}");
        assert!((least.intercept + 3.18).abs() < 1e-9, "{least:?}");
    }

    #[test]
    fn need_two_different_x() {
        assert_eq!(theil_sen(&[]), None);
        assert_eq!(theil_sen(&[(1.0, 2.0), (1.0, 3.0)]), None);
        assert_eq!(least_squares(&[]), None);
        assert_eq!(least_squares(&[(1.0, 2.0)]), None);
    }
}
