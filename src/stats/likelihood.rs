//! Profile likelihood: maxima, where a curve crosses a level, and the critical values of a parameter that has a bound.

use super::distribution::{normal_cdf, normal_quantile};

/// The critical value c of the likelihood-ratio statistic 2(ℓ_max − ℓ(θ)) at `level`, for a parameter with θ ≥ 0 and a candidate
/// that lies `distance` standard errors above that bound.
///
/// # Equation
/// Far from the bound the statistic is χ² of one degree of freedom. Near it, the estimate cannot fall below zero, and
/// P(statistic > c) = Φ(−√c) + Φ(−(c + δ²) / (2δ)) for √c > δ, which is set to 1 − level and solved for c: 2.706 at δ = 0,
/// 3.841 from δ = 1.96 on, at 95 %.
///
/// # Source
/// The construction of Feldman and Cousins 1998, "Unified approach to the classical statistical analysis of small signals", for a
/// normal estimate; the limit at δ = 0 is that of Self and Liang 1987.
pub fn critical_value(level: f64, distance: f64) -> f64 {
    let alpha = 1.0 - level;
    let far = normal_quantile(alpha / 2.0).powi(2);
    if distance.is_nan() || distance * distance >= far {
        return far;
    }
    let delta = distance.max(1e-9);
    let exceeded = |c: f64| normal_cdf(-c.sqrt()) + normal_cdf(-(c + delta * delta) / (2.0 * delta)) - alpha;
    let (mut low, mut high) = (normal_quantile(alpha).powi(2) * 0.999, far);
    for _ in 0..50 {
        let middle = (low + high) / 2.0;
        if exceeded(middle) > 0.0 { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// Where `curve` is highest within [low, high], and how high, for a curve with one peak there: golden sections with parabolic
/// steps (Brent 1973), to `tolerance` in the argument.
pub fn peak(mut curve: impl FnMut(f64) -> f64, low: f64, high: f64, tolerance: f64) -> (f64, f64) {
    const GOLDEN: f64 = 0.381_966_011_250_105_1;
    let (mut a, mut b) = (low, high);
    let mut x = a + GOLDEN * (b - a);
    let (mut w, mut v) = (x, x);
    let mut fx = curve(x);
    let (mut fw, mut fv) = (fx, fx);
    let (mut step, mut before) = (0.0f64, 0.0f64);
    for _ in 0..100 {
        let middle = (a + b) / 2.0;
        if (x - middle).abs() <= 2.0 * tolerance - (b - a) / 2.0 {
            break;
        }
        let mut golden = true;
        if before.abs() > tolerance {
            let (r, q) = ((x - w) * (fx - fv), (x - v) * (fx - fw));
            let mut p = (x - v) * q - (x - w) * r;
            let mut q = 2.0 * (q - r);
            if q > 0.0 {
                p = -p;
            }
            q = q.abs();
            // A step of the parabola is taken where it lies inside and shrinks.
            if p.abs() < (0.5 * q * before).abs() && p > q * (a - x) && p < q * (b - x) {
                (before, step) = (step, p / q);
                let at = x + step;
                if at - a < 2.0 * tolerance || b - at < 2.0 * tolerance {
                    step = tolerance.copysign(middle - x);
                }
                golden = false;
            }
        }
        if golden {
            before = if x < middle { b - x } else { a - x };
            step = GOLDEN * before;
        }
        let at = x + if step.abs() >= tolerance { step } else { tolerance.copysign(step) };
        let f = curve(at);
        if f >= fx {
            if at < x {
                b = x
            } else {
                a = x
            }
            (v, fv, w, fw, x, fx) = (w, fw, x, fx, at, f);
        } else {
            if at < x {
                a = at
            } else {
                b = at
            }
            if f >= fw || w == x {
                (v, fv, w, fw) = (w, fw, at, f);
            } else if f >= fv || v == x || v == w {
                (v, fv) = (at, f);
            }
        }
    }
    (x, fx)
}

/// Where `excess` crosses zero between `inside`, where it is negative, and `outside`, where it is positive: false position with
/// Illinois' halving, to `tolerance` in the argument. An infinite value is stepped away from by halves.
pub fn crossing(mut excess: impl FnMut(f64) -> f64, inside: f64, outside: f64, tolerance: f64) -> f64 {
    let (mut a, mut b) = (inside, outside);
    let (mut fa, mut fb) = (excess(a), excess(b));
    let mut last = 0;
    for _ in 0..60 {
        if (b - a).abs() <= tolerance {
            break;
        }
        let part = fa / (fa - fb);
        let at =
            if part.is_finite() && part > 0.0 && part < 1.0 { a + part * (b - a) } else { (a + b) / 2.0 };
        let f = excess(at);
        if f.abs() < 1e-10 {
            return at;
        }
        if f < 0.0 {
            (a, fa) = (at, f);
            if last == -1 {
                fb /= 2.0;
            }
            last = -1;
        } else {
            (b, fb) = (at, f);
            if last == 1 {
                fa /= 2.0;
            }
            last = 1;
        }
    }
    (a + b) / 2.0
}

/// From `inside` in steps that double, the first argument at which `excess` is positive; `None` where that is none up to
/// `limit`.
pub fn outside(mut excess: impl FnMut(f64) -> f64, inside: f64, step: f64, limit: f64) -> Option<f64> {
    let mut step = step;
    loop {
        let at = inside + step;
        let at = if step > 0.0 { at.min(limit) } else { at.max(limit) };
        if excess(at) > 0.0 {
            return Some(at);
        }
        if at == limit {
            return None;
        }
        step *= 2.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn critical_values_go_from_one_sided_to_two_sided() {
        // scipy.stats.chi2.ppf(0.9, 1) and chi2.ppf(0.95, 1).
        assert!((critical_value(0.95, 0.0) - 2.705543454095404).abs() < 1e-6);
        assert!((critical_value(0.95, 1.97) - 3.841458820694124).abs() < 1e-9);
        assert!((critical_value(0.95, f64::INFINITY) - 3.841458820694124).abs() < 1e-9);
        // At each distance the statistic of a bounded normal estimate exceeds it in 5 %, counted over a fine grid of z.
        for distance in [0.0, 0.3, 0.7, 1.2, 1.6, 1.9] {
            let c = critical_value(0.95, distance);
            let count = 100_001;
            let exceeded = (0..count)
                .map(|i| normal_quantile((f64::from(i) + 0.5) / f64::from(count)))
                .filter(|z| z * z - (z + distance).min(0.0).powi(2) > c)
                .count();
            assert!((exceeded as f64 / f64::from(count) - 0.05).abs() < 1e-4, "{distance}: {exceeded}");
        }
    }

    #[test]
    fn peaks_and_crossings_are_found() {
        let curve = |x: f64| -(x - 0.3).powi(2) - 0.1 * (x - 0.3).powi(4);
        let (at, height) = peak(curve, -2.0, 5.0, 1e-8);
        assert!((at - 0.3).abs() < 1e-7 && height.abs() < 1e-12, "{at}");
        // A peak at an end is the end.
        assert!(peak(|x| -x, 0.0, 1.0, 1e-8).0 < 1e-7);
        let root = crossing(|x| x * x * x - 2.0, 0.0, 5.0, 1e-10);
        assert!((root - 2f64.cbrt()).abs() < 1e-9, "{root}");
        let root = crossing(|x| if x > 3.0 { f64::INFINITY } else { x - 1.0 }, 0.0, 5.0, 1e-10);
        assert!((root - 1.0).abs() < 1e-9, "{root}");
        assert_eq!(outside(|x| x - 3.0, 0.0, 0.5, 10.0), Some(4.0));
        assert_eq!(outside(|x| -x - 30.0, 0.0, -0.5, -10.0), None);
    }
}
