//! The normal, Student's and beta distributions, as the rest of `stats` needs them (over `statrs` and `libm`).

use statrs::distribution::{Beta, ContinuousCDF, Normal, StudentsT};

/// P(Z ≤ z) of a standard normal Z.
pub fn normal_cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2)
}

/// The z with P(Z ≤ z) = `p`; infinite at 0 and 1.
pub fn normal_quantile(p: f64) -> f64 {
    Normal::standard().inverse_cdf(p)
}

/// P(T ≤ t) of Student's T with `df` > 0 degrees of freedom (they need not be whole).
pub fn student_cdf(t: f64, df: f64) -> f64 {
    StudentsT::new(0.0, 1.0, df).map_or(f64::NAN, |student| student.cdf(t))
}

/// The t with P(T ≤ t) = `p` under `df` > 0 degrees of freedom.
pub fn student_quantile(p: f64, df: f64) -> f64 {
    StudentsT::new(0.0, 1.0, df).map_or(f64::NAN, |student| student.inverse_cdf(p))
}

/// The x with P(X ≤ x) = `p` of a beta variable X with shapes `a` and `b`.
pub fn beta_quantile(p: f64, a: f64, b: f64) -> f64 {
    Beta::new(a, b).map_or(f64::NAN, |beta| beta.inverse_cdf(p))
}

/// The two-sided p-value of a t statistic.
pub fn student_two_sided(t: f64, df: f64) -> f64 {
    (2.0 * student_cdf(-t.abs(), df)).min(1.0)
}

/// How much wider than a normal's `p` quantile the Student quantile is: t(p)/z(p), with its limit at p = 1/2.
pub fn student_over_normal(p: f64, df: f64) -> f64 {
    let tail = p.min(1.0 - p).max(f64::MIN_POSITIVE);
    // Close to one half both quantiles vanish; the ratio of densities there is flat to first order.
    let tail = tail.min(0.499);
    student_quantile(tail, df) / normal_quantile(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_equal_scipy() {
        // scipy.stats.t.ppf(p, df), scipy 1.17.
        for (p, df, expected) in T_PPF {
            let got = student_quantile(p, df);
            assert!((got - expected).abs() < 1e-9 * expected.abs(), "t({p}, {df}): {got} against {expected}");
        }
        assert!((student_over_normal(0.5, 4.0) - student_over_normal(0.49, 4.0)).abs() < 1e-3);
        let (high, low) = (student_over_normal(0.975, 4.0), student_over_normal(0.025, 4.0));
        assert!((high / low - 1.0).abs() < 1e-14);
    }
    const T_PPF: [(f64, f64, f64); 7] = [
        (0.975, 4.0, 2.7764451051977934),
        (0.025, 4.0, -2.7764451051977943),
        (0.975, 5.7, 2.4784713087006094),
        (0.999, 7.3, 4.688865993538372),
        (0.9999, 4.0, 13.033671720896821),
        (0.6, 23.5, 0.25623390578108723),
        (1e-05, 511.0, -4.305263582337146),
    ];
}
