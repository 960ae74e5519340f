//! Correlation of two samples: Pearson, Spearman (ties get their mean rank), Kendall's τ-b.
//!
//! A sample that does not vary has no correlation: that is `None`, never 0.

use super::distribution::{normal_cdf, student_two_sided};
use super::sample::{is_constant, mean};
use crate::error::{Error, Result};

/// A correlation with the two-sided p-value of its being zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Correlation {
    /// The coefficient, in [−1, 1].
    pub coefficient: f64,
    /// The two-sided p-value of "no association"; `None` below three points.
    pub p: Option<f64>,
}

/// Pearson's correlation; the p-value is Student's t with n − 2 degrees of freedom.
///
/// # Errors
/// Where the lengths differ or a value is not finite.
pub fn pearson(x: &[f64], y: &[f64]) -> Result<Option<Correlation>> {
    check(x, y)?;
    Ok(product_moment(x, y).map(|r| Correlation { coefficient: r, p: p_of_r(r, x.len()) }))
}

/// Spearman's rank correlation; the p-value is Student's t with n − 2 degrees of freedom.
///
/// # Errors
/// Where the lengths differ or a value is not finite.
pub fn spearman(x: &[f64], y: &[f64]) -> Result<Option<Correlation>> {
    check(x, y)?;
    Ok(product_moment(&ranks(x), &ranks(y)).map(|r| Correlation { coefficient: r, p: p_of_r(r, x.len()) }))
}

/// Kendall's τ-b; the p-value is exact without ties up to 171 points, normal otherwise.
///
/// # Errors
/// Where the lengths differ or a value is not finite.
pub fn kendall(x: &[f64], y: &[f64]) -> Result<Option<Correlation>> {
    check(x, y)?;
    let n = x.len();
    if n < 2 || is_constant(x) || is_constant(y) {
        return Ok(None);
    }
    let (mut concordant, mut discordant) = (0u64, 0u64);
    for i in 0..n {
        for j in 0..i {
            let agreement = (x[i] - x[j]).signum() * (y[i] - y[j]).signum();
            if x[i] == x[j] || y[i] == y[j] {
                continue;
            }
            if agreement > 0.0 { concordant += 1 } else { discordant += 1 }
        }
    }
    let (ties_x, ties_y) = (tie_groups(x), tie_groups(y));
    let pairs_of = |groups: &[f64]| groups.iter().map(|t| t * (t - 1.0) / 2.0).sum::<f64>();
    let pairs = (n * (n - 1) / 2) as f64;
    let score = concordant as f64 - discordant as f64;
    let tau = score / ((pairs - pairs_of(&ties_x)) * (pairs - pairs_of(&ties_y))).sqrt();
    let untied = ties_x.iter().chain(&ties_y).all(|&t| t == 1.0);
    let p = if untied && n <= 171 {
        kendall_exact(n, concordant.min(discordant))
    } else {
        kendall_normal(n as f64, score, &ties_x, &ties_y)
    };
    Ok(Some(Correlation { coefficient: tau.clamp(-1.0, 1.0), p: (n > 2).then_some(p) }))
}

/// The rank of each value, counted from 1; equal values share the mean of their ranks.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && values[order[end]] == values[order[start]] {
            end += 1;
        }
        let shared = (start + 1 + end) as f64 / 2.0;
        order[start..end].iter().for_each(|&index| ranks[index] = shared);
        start = end;
    }
    ranks
}

/// The sizes of the groups of equal values.
pub(super) fn tie_groups(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.chunk_by(|a, b| a == b).map(|group| group.len() as f64).collect()
}

fn product_moment(x: &[f64], y: &[f64]) -> Option<f64> {
    if x.len() < 2 || is_constant(x) || is_constant(y) {
        return None;
    }
    let (mean_x, mean_y) = (mean(x)?, mean(y)?);
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (a, b) in x.iter().zip(y) {
        let (a, b) = (a - mean_x, b - mean_y);
        xx += a * a;
        yy += b * b;
        xy += a * b;
    }
    Some((xy / (xx * yy).sqrt()).clamp(-1.0, 1.0))
}

fn p_of_r(r: f64, n: usize) -> Option<f64> {
    let df = n.checked_sub(2).filter(|&df| df > 0)? as f64;
    Some(if r.abs() == 1.0 { 0.0 } else { student_two_sided(r * (df / ((1.0 - r) * (1.0 + r))).sqrt(), df) })
}

/// The share of permutations of `n` with at most `inversions` inversions, doubled.
fn kendall_exact(n: usize, inversions: u64) -> f64 {
    // counts[c] is the probability of exactly c inversions among the permutations of the first j + 1 items.
    let mut probability = vec![0.0; inversions as usize + 1];
    probability[0] = 1.0;
    for j in 1..n {
        let earlier = probability.clone();
        let mut window = 0.0;
        for c in 0..probability.len() {
            window += earlier[c];
            if c > j {
                window -= earlier[c - j - 1];
            }
            probability[c] = window / (j + 1) as f64;
        }
    }
    (2.0 * probability.iter().sum::<f64>()).min(1.0)
}

/// The normal approximation with its variance corrected for ties (Kendall 1970).
fn kendall_normal(n: f64, score: f64, ties_x: &[f64], ties_y: &[f64]) -> f64 {
    let sum = |groups: &[f64], of: fn(f64) -> f64| groups.iter().map(|&t| of(t)).sum::<f64>();
    let pairs = |t: f64| t * (t - 1.0) / 2.0;
    let triples = |t: f64| t * (t - 1.0) * (t - 2.0);
    let wide = |t: f64| t * (t - 1.0) * (2.0 * t + 5.0);
    let total = n * (n - 1.0);
    let variance = (total * (2.0 * n + 5.0) - sum(ties_x, wide) - sum(ties_y, wide)) / 18.0
        + 2.0 * sum(ties_x, pairs) * sum(ties_y, pairs) / total
        + sum(ties_x, triples) * sum(ties_y, triples) / (9.0 * total * (n - 2.0)).max(f64::MIN_POSITIVE);
    (2.0 * normal_cdf(-score.abs() / variance.sqrt())).min(1.0)
}

fn check(x: &[f64], y: &[f64]) -> Result<()> {
    if x.len() != y.len() {
        return Err(Error::Shape(format!(
            "a correlation needs pairs: {} values against {}",
            x.len(),
            y.len()
        )));
    }
    if x.iter().chain(y).any(|v| !v.is_finite()) {
        return Err(Error::Shape("a correlation needs finite values: leave failures out".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // scipy 1.17: spearmanr and kendalltau of these two, which both have ties.
    const X: [f64; 8] = [1.0, 2.0, 2.0, 3.0, 5.0, 5.0, 5.0, 7.0];
    const Y: [f64; 8] = [2.0, 1.0, 3.0, 3.0, 4.0, 6.0, 4.0, 5.0];

    const SPEARMAN: (f64, f64) = (0.8759284757666266, 0.0043415245307816324);
    const KENDALL: (f64, f64) = (0.760608730574164, 0.013338990472527654);

    #[test]
    fn ties_share_their_rank() {
        assert_eq!(ranks(&X), [1.0, 2.5, 2.5, 4.0, 6.0, 6.0, 6.0, 8.0]);
        assert_eq!(ranks(&[]), Vec::<f64>::new());
    }

    #[test]
    fn tied_samples_equal_scipy() {
        let close = |got: Option<Correlation>, (coefficient, p): (f64, f64)| {
            let got = got.expect("both samples vary");
            assert!((got.coefficient - coefficient).abs() < 1e-12, "{got:?}");
            assert!((got.p.expect("eight points") - p).abs() < 1e-12, "{got:?}");
        };
        close(spearman(&X, &Y).expect("valid"), SPEARMAN);
        close(kendall(&X, &Y).expect("valid"), KENDALL);
    }

    #[test]
    fn constants_and_bad_input() {
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]).expect("valid"), None);
        assert_eq!(pearson(&[], &[]).expect("valid"), None);
        assert!(pearson(&[1.0], &[1.0, 2.0]).is_err());
        assert!(kendall(&[f64::NAN], &[1.0]).is_err());
        let exact = pearson(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]).expect("valid").expect("both vary");
        assert_eq!(exact, Correlation { coefficient: 1.0, p: Some(0.0) });
    }
}
