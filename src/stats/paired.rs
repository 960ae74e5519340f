//! Classical tests of paired differences, beside which a bootstrap can be read: Student's t and Wilcoxon's ranks.

use super::correlation::{ranks, tie_groups};
use super::distribution::{normal_cdf, student_quantile, student_two_sided};
use super::estimate::{Estimate, Method};
use super::sample::{mean, variance};
use crate::error::{Error, Result};

/// A test statistic with its two-sided p-value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Test {
    /// The statistic.
    pub statistic: f64,
    /// The two-sided p-value.
    pub p: f64,
}

/// Student's t test that independent `differences` have mean zero.
///
/// # Errors
/// Where there are fewer than two differences or they do not vary.
pub fn t_test(differences: &[f64]) -> Result<Test> {
    let (mean, error) = mean_and_error(differences)?;
    let statistic = mean / error;
    Ok(Test { statistic, p: student_two_sided(statistic, (differences.len() - 1) as f64) })
}

/// The mean of independent `differences` with Student's interval.
///
/// # Errors
/// Where there are fewer than two differences or they do not vary.
pub fn t_interval(differences: &[f64], level: f64) -> Result<Estimate> {
    let (mean, error) = mean_and_error(differences)?;
    let reach = student_quantile(0.5 + level / 2.0, (differences.len() - 1) as f64) * error;
    Ok(Estimate::new(mean, (mean - reach, mean + reach), level, Method::Student))
}

/// Wilcoxon's signed-rank test that `differences` lie evenly about zero; zeros are left out.
///
/// The statistic is the smaller of the two rank sums. Exact up to 50 differences without ties or zeros, else normal
/// with its variance corrected for ties and no continuity correction, as scipy chooses.
///
/// # Errors
/// Where every difference is zero, or one is not finite.
pub fn wilcoxon(differences: &[f64]) -> Result<Test> {
    let kept: Vec<f64> = differences.iter().copied().filter(|&d| d != 0.0).collect();
    if kept.is_empty() || kept.iter().any(|d| !d.is_finite()) {
        return Err(Error::Shape(
            "a signed-rank test needs finite differences that are not all zero".to_owned(),
        ));
    }
    let sizes: Vec<f64> = kept.iter().map(|d| d.abs()).collect();
    let positive: f64 =
        ranks(&sizes).iter().zip(&kept).filter(|(_, d)| **d > 0.0).map(|(rank, _)| rank).sum();
    let n = kept.len() as f64;
    let statistic = positive.min(n * (n + 1.0) / 2.0 - positive);
    let ties = tie_groups(&sizes);
    let p = if kept.len() == differences.len() && kept.len() <= 50 && ties.iter().all(|&t| t == 1.0) {
        signed_rank_exact(kept.len(), statistic as usize)
    } else {
        let tied: f64 = ties.iter().map(|t| t * (t * t - 1.0)).sum();
        let variance = (n * (n + 1.0) * (2.0 * n + 1.0) - tied / 2.0) / 24.0;
        2.0 * normal_cdf((statistic - n * (n + 1.0) / 4.0) / variance.sqrt())
    };
    Ok(Test { statistic, p: p.min(1.0) })
}

/// Twice the share of sign assignments whose positive ranks sum to at most `sum`.
fn signed_rank_exact(n: usize, sum: usize) -> f64 {
    let mut probability = vec![0.0; sum + 1];
    probability[0] = 1.0;
    for rank in 1..=n {
        for total in (0..=sum).rev() {
            let taken = if total >= rank { probability[total - rank] } else { 0.0 };
            probability[total] = (probability[total] + taken) / 2.0;
        }
    }
    2.0 * probability.iter().sum::<f64>()
}

fn mean_and_error(differences: &[f64]) -> Result<(f64, f64)> {
    match (mean(differences), variance(differences)) {
        (Some(mean), Some(variance)) if variance > 0.0 && variance.is_finite() => {
            Ok((mean, (variance / differences.len() as f64).sqrt()))
        }
        _ => Err(Error::Shape(format!(
            "a t test needs at least two finite differences that vary, got {}",
            differences.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_and_zeros_use_the_normal_form() {
        // scipy 1.17: wilcoxon([0.2, 0.4, -0.3, 1.0, -0.4, 0.0, 0.2]) with method="approx".
        let test = wilcoxon(&TIED).expect("valid");
        assert_eq!(test.statistic, TIED_SCIPY.0);
        assert!((test.p - TIED_SCIPY.1).abs() < 1e-12, "{test:?}");
    }
    const TIED: [f64; 7] = [0.2, 0.4, -0.3, 1.0, -0.4, 0.0, 0.2];
    const TIED_SCIPY: (f64, f64) = (7.5, 0.5270892568655381);

    #[test]
    fn refuses_what_does_not_vary() {
        assert!(t_test(&[1.0, 1.0]).is_err());
        assert!(t_test(&[1.0]).is_err());
        assert!(wilcoxon(&[0.0]).is_err());
    }
}
